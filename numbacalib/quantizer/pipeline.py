"""The quantizer of whole models, one decoder block in memory at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.format import Format, LayerGrid, ModelWriter
from numbacalib.formats.group_lengths import listed
from numbacalib.formats.output_directory import new_directory
from numbacalib.formats.registry import common_grids, formats_named, stored_format
from numbacalib.methods import (
    LayerReport,
    LayerSettings,
    QuantizedWeight,
    awq_scales,
    quantize_layers,
)
from numbacalib.models import (
    Checkpoint,
    Decoder,
    DecoderBlock,
    Place,
    open_checkpoint,
    open_place,
)
from numbacalib.models.layer_tensors import stages
from numbacalib.quantizer.calibration import (
    SILENT,
    Calibration,
    SavedCalibration,
    Stage,
    TextCalibration,
)
from numbacalib.quantizer.importance import read_importance
from numbacalib.quantizer.preflight import require_space
from numbacalib.quantizer.progress import Progress
from numbacalib.quantizer.settings import Settings, check
from numbacalib.quantizer.text import read_sequences
from numbacalib.statistics import InputStatistics

log = logging.getLogger("numbacalib")


def quantize(
    model: str | Path,
    output: str | Path,
    *,
    text: Sequence[str | Path] = (),
    statistics: str | Path | None = None,
    importance: str | Path | None = None,
    settings: Settings,
    formats: Sequence[str] = ("compressed-tensors",),
    device: str = "auto",
    clean: bool = False,
) -> list[LayerReport]:
    """Quantize the linear layers of a model's decoder blocks and write a loadable checkpoint.

    GPTQ runs block by block and layer by layer on the activations that the layers quantized before
    produce; layers that share an input share its Hessian. Embeddings, norms, biases and the head are
    copied as they are. `output` appears when it is complete.

    Parameters
    ----------
    model : path
        A Hugging Face directory or a GGUF file.
    output : path
        Absent, or an empty directory.
    text : sequence of paths
        Calibration text, UTF-8; round-to-nearest needs none.
    statistics : path, optional
        What `numbacalib.quantizer.collect` left, instead of a text.
    importance : path, optional
        What `numbacalib.quantizer.read_importance` reads, for the ranges "weighted" instead of the
        mean squares of the text.
    settings : Settings
    formats : sequence of str, default ("compressed-tensors",)
        Names of `numbacalib.formats.FORMATS`. Of several, which must have a grid in common, each gets a
        directory of its name in `output`.
    device : str, default "auto"
        Where the model runs and its layers are quantized: see `numbacalib.models.open_place`.
    clean : bool, default False
        Remove what killed runs to the same output left beside it.

    Returns
    -------
    list of LayerReport
        In the order in which the layers ran.

    Raises
    ------
    ValueError, TypeError, OSError
        If an input does not fit, or there is no room for the output; nothing has been written then.
    OSError
        If the disk refuses later. Where the checkpoint was complete, it is kept, and the message names it.
    ModuleNotFoundError
        If a package of the extra `models` is missing.
    numpy.linalg.LinAlgError
        If a layer's damped Hessian is not positive definite, or too many were not at first.

    Examples
    --------
    >>> from numbacalib.quantizer import Settings, quantize
    >>> settings = Settings(bits=4, group_size=32, samples=2, sequence_length=32)
    >>> reports = quantize("model", "quantized", text=["text.txt"], settings=settings)
    >>> reports[0].name, reports[0].tokens, reports[0].loss < reports[0].rtn_loss
    ('model.layers.0.self_attn.q_proj', 64, True)
    """
    check(settings, importance)
    written = formats_named(formats)
    for each in written:
        each.check(_asked(settings, np.dtype(np.float32)))
    place = open_place(device)
    with new_directory(output, clean=clean) as directory:
        directories = [directory / each.name if written[1:] else directory for each in written]
        for own in directories:
            own.mkdir(exist_ok=True)
        outputs = dict(zip(directories, written, strict=True))
        return _write_checkpoints(outputs, model, text, statistics, importance, settings, place)


def _write_checkpoints(
    outputs: Mapping[Path, Format],
    model: str | Path,
    text: Sequence[str | Path],
    statistics: str | Path | None,
    importance: str | Path | None,
    settings: Settings,
    place: Place,
) -> list[LayerReport]:
    """Do what `quantize` does, into directories; what is small is written before the first block."""
    checkpoint = open_checkpoint(model)
    if stored_format(checkpoint) is not None:
        raise ValueError(f"{model}: expected an unquantized checkpoint, got a quantized one")
    decoder = Decoder(checkpoint, place=place)
    grids = _grids(checkpoint, settings, list(outputs.values()))
    writers = [each.writer(path, checkpoint, grids) for path, each in outputs.items()]
    require_space(next(iter(outputs)), sum(writer.planned_bytes for writer in writers))
    with ExitStack() as stack:
        for writer in writers:
            stack.enter_context(writer)
        factors = None
        if importance is not None:
            factors = read_importance(importance, _layer_shapes(checkpoint))
        calibration: Calibration | None = None
        if statistics is not None:
            if text:
                raise ValueError("text: expected none where statistics are given")
            if settings.target == "propagated":
                raise ValueError(
                    "target: expected layerwise with statistics, since only a run over a text has the "
                    "quantized layers' inputs beside the original ones"
                )
            calibration = SavedCalibration(statistics, checkpoint, decoder)
        elif settings.calibrated(importance is not None) or settings.channel_scales != "none":
            tokens = read_sequences(checkpoint, text, settings.sequence_length, settings.samples)
            propagated = settings.target == "propagated"
            calibration = TextCalibration(decoder, tokens, propagated)
        return _quantize_blocks(checkpoint, decoder, calibration, factors, settings, grids, writers)


def _grids(
    checkpoint: Checkpoint, settings: Settings, formats: Sequence[Format]
) -> dict[str, LayerGrid]:
    """Say how the model's linear layers are to be stored, and in the log what deviates."""
    weights = {name: checkpoint.info(f"{name}.weight") for name in _layer_shapes(checkpoint)}
    asked = {name: _asked(settings, info.dtype) for name, info in weights.items()}
    grids = common_grids(formats, weights, asked)
    for grid in dict.fromkeys(grids.values()):
        _on_grid(settings, grid).check()
    others: dict[tuple[int | None, int | None], set[int]] = {}
    for name, grid in grids.items():
        sizes = asked[name].group_size, grid.group_size
        if sizes[0] != sizes[1] and grid.find is None:
            others.setdefault(sizes, set()).add(weights[name].shape[1])
    for (size, taken), channels in others.items():
        divides = any(K % (size or 1) == 0 for K in channels)
        why = "every K, and the file format has one length" if divides else "K"
        K = listed(channels)
        log.warning(
            "group_size %s does not divide %s: groups of %s for K = %s", size, why, taken, K
        )
    return grids


def _asked(settings: Settings, dtype: np.dtype) -> LayerGrid:
    """Return the grid of a layer with weights of `dtype`, before a format says how it is stored."""
    unordered = settings.method == "gptq" and settings.act_order == "desc"
    return LayerGrid(
        settings.bits,
        settings.group_size,
        settings.symmetric,
        dtype,
        g_idx=unordered and not settings.static_groups,
    )


def _layer_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """M and K of the linear layers that are quantized, by name without ``.weight``."""
    shapes = {}
    for index in range(checkpoint.config.num_layers):
        for kind in (kind for stage in stages(checkpoint.config, index) for kind in stage):
            rows, channels = checkpoint.info(f"model.layers.{index}.{kind}.weight").shape
            shapes[f"model.layers.{index}.{kind}"] = rows, channels
    return shapes


def _quantize_blocks(
    checkpoint: Checkpoint,
    decoder: Decoder,
    calibration: Calibration | None,
    importance: Mapping[str, NDArray] | None,
    settings: Settings,
    grids: Mapping[str, LayerGrid],
    writers: Sequence[ModelWriter],
) -> list[LayerReport]:
    """Quantize block after block; `calibration` None is a method that needs no activations."""
    layers = decoder.config.num_layers
    reports: list[LayerReport] = []
    with (
        Progress(sum(len(stages(decoder.config, index)) for index in range(layers))) as progress,
        np.errstate(**SILENT),
    ):
        for index in range(layers):
            at = f"block {index + 1} of {layers}"
            progress.show(f"{at}: reading")
            block = decoder.block(index)
            checkpoint.check_unchanged()
            layer_settings = _layer_settings(block, settings, grids)
            run: Iterable[tuple[Stage, InputStatistics | None]]
            if calibration is None:
                run = [(stage, None) for stage in block.stages]
            else:
                folded: dict[Stage, NDArray] = {}
                if settings.channel_scales == "awq":
                    progress.show(f"{at}: scaling channels")
                    preview = calibration.preview(index, block)
                    folded, vectors = _fold_scales(
                        checkpoint, block, preview, settings, layer_settings
                    )
                    for name, vector in vectors.items():
                        for writer in writers:
                            writer.add(f"{block.name}.{name}", vector)
                run = calibration.stages(index, block, folded)
            for stage, statistics in run:
                for kinds in _alike(stage, layer_settings):
                    progress.show(f"{at}: quantizing {', '.join(kinds)}")
                    names = {f"{block.name}.{kind}": kind for kind in kinds}
                    factors = None
                    if importance is not None:
                        factors = {name: decoder.place.put(importance[name]) for name in names}
                    weights = {name: block.linears[kind] for name, kind in names.items()}
                    results = quantize_layers(
                        weights, statistics, layer_settings[kinds[0]], factors
                    )
                    for (name, kind), (quantized, report) in zip(
                        names.items(), results, strict=True
                    ):
                        # no codebooks: see settings.check
                        assert isinstance(quantized, QuantizedWeight)
                        block.linears[kind] = quantized.dequantize(block.dtype)
                        weight = quantized.to_host()
                        stored = [writer.add_layer(name, weight) for writer in writers]
                        reports.append(replace(report, stored_bytes=stored[0]))
                _check_fallbacks(reports, len(block.linears) * layers, settings)
                progress.step(at if stage == block.stages[-1] else "")
                progress.show(f"{at}: running the text through it")
    _warn_of_calibration(reports)
    return reports


def _layer_settings(
    block: DecoderBlock, settings: Settings, grids: Mapping[str, LayerGrid]
) -> dict[str, LayerSettings]:
    """Settings of each of a block's linear layers, by short name: on its grid, as stored."""
    return {kind: _on_grid(settings, grids[f"{block.name}.{kind}"]) for kind in block.linears}


def _alike(stage: Stage, settings: Mapping[str, LayerSettings]) -> list[Stage]:
    """Split a stage into the layers that have the same settings, in their order."""
    groups: list[list[str]] = []
    for kind in stage:
        if groups and settings[groups[-1][0]] == settings[kind]:
            groups[-1].append(kind)
        else:
            groups.append([kind])
    return [tuple(group) for group in groups]


def _on_grid(settings: Settings, grid: LayerGrid) -> LayerSettings:
    return replace(
        settings,
        bits=grid.bits,
        group_size=grid.group_size,
        symmetric=grid.symmetric,
        scale_dtype=grid.scale_dtype,
        find_grid=grid.find,
    )


def _fold_scales(
    checkpoint: Checkpoint,
    block: DecoderBlock,
    preview: Sequence[tuple[Stage, InputStatistics]],
    settings: Settings,
    layer_settings: Mapping[str, LayerSettings],
) -> tuple[dict[Stage, NDArray], dict[str, NDArray]]:
    """Scale the block's channels by AWQ where something can take up the scales.

    Returns the scales by stage, and the block's vectors that changed, as they are stored.
    """
    folded: dict[Stage, NDArray] = {}
    vectors: dict[str, NDArray] = {}
    for stage, statistics in preview:
        if (producer := block.producer(stage)) is None:
            continue
        found = awq_scales(
            [block.linears[kind] for kind in stage],
            statistics.hessian,
            statistics.mean_abs if settings.awq_magnitude == "mean" else statistics.max_abs,
            weight_term=settings.awq_weight_term,
            bits=layer_settings[stage[0]].bits,
            group_size=layer_settings[stage[0]].group_size,
            symmetric=layer_settings[stage[0]].symmetric,
            scale_dtype=layer_settings[stage[0]].scale_dtype,
        )
        dtype = checkpoint.info(f"{block.name}.{producer}.weight").dtype
        folded[stage], changed = block.fold(stage, found.scales, dtype)
        vectors |= changed
    return folded, vectors


def _check_fallbacks(reports: Sequence[LayerReport], layers: int, settings: Settings) -> None:
    """Fail as soon as too many layers needed more damping than was asked for."""
    count = sum(report.fell_back for report in reports)
    if count > settings.max_fallbacks * layers:
        raise np.linalg.LinAlgError(
            f"{count} of {layers} layers needed more damping than percdamp {settings.percdamp:g}, "
            f"above the share of {settings.max_fallbacks:g}: {reports[-1].name} was the last"
        )


def _warn_of_calibration(reports: Sequence[LayerReport]) -> None:
    """Say where the text was too little, or only looked like enough, or did not reach a layer."""
    remedy = "calibrate on more text, or shrink the Hessian toward its diagonal"
    if poor := [report for report in reports if report.full_rank is False]:
        log.warning(
            "%d of %d layers had fewer tokens than channels (%d for %d, %s): %s",
            len(poor),
            len(reports),
            poor[0].tokens,
            poor[0].shape[1],
            poor[0].name,
            remedy,
        )
    if low := [report for report in reports if report.low_rank]:
        worst = min(low, key=lambda report: (report.effective_rank or 0) / report.shape[1])
        log.warning(
            "the inputs of %d of %d layers vary in few directions (%s: effective rank %.3g of %d, from "
            "%d tokens that are much alike): %s",
            len(low),
            len(reports),
            worst.name,
            worst.effective_rank,
            worst.shape[1],
            worst.tokens,
            remedy.replace("more text", "more varied text"),
        )
    if dead := [report for report in reports if report.dead == report.shape[1]]:
        log.warning(
            "%d of %d layers had inputs of zeros alone (%s): gptq makes their weights 0",
            len(dead),
            len(reports),
            dead[0].name,
        )
