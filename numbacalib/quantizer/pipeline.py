"""The quantizer of whole models, one decoder block in memory at a time."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.format import Format, LayerGrid, ModelWriter
from numbacalib.formats.group_lengths import listed
from numbacalib.formats.output_directory import (
    new_directory,
    require_new_directory,
    work_directory,
)
from numbacalib.formats.registry import common_grids, formats_named, stored_format
from numbacalib.methods import (
    LayerReport,
    LayerSettings,
    QuantizedWeight,
    awq_scales,
    quantize_layer,
)
from numbacalib.models import (
    Checkpoint,
    Decoder,
    DecoderBlock,
    Place,
    TensorInfo,
    open_checkpoint,
    open_place,
)
from numbacalib.ops.matrix import to_host
from numbacalib.quantizer.calibration import (
    SILENT,
    Calibration,
    SavedCalibration,
    Stage,
    TextCalibration,
)
from numbacalib.quantizer.identity import identity_of, stamps_of
from numbacalib.quantizer.importance import read_importance
from numbacalib.quantizer.preflight import require_space
from numbacalib.quantizer.progress import Progress
from numbacalib.quantizer.settings import Settings, check
from numbacalib.quantizer.text import read_sequences
from numbacalib.quantizer.work import FinishedBlock, Work, kept_bytes, open_work
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
    work: str | Path | None = None,
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
        Begin anew where a killed run left finished blocks.
    work : path, optional
        A directory to keep finished blocks in until the output is complete; a hidden one beside the output
        by default. A run that was killed goes on from there when it is started again.

    Returns
    -------
    list of LayerReport
        In the order in which the layers ran.

    Raises
    ------
    ValueError, TypeError, OSError
        If an input does not fit, there is no room for the output, or the finished blocks of a killed run
        are of other inputs or settings; nothing has been written then.
    OSError
        If the disk refuses later. Where the checkpoint was complete, it is kept, and the message names it.
    ModuleNotFoundError
        If a package of the extra `models` is missing.
    numpy.linalg.LinAlgError
        If a layer's damped Hessian is not positive definite, or too many were not at first.
    """
    check(settings, importance)
    written = formats_named(formats)
    for each in written:
        each.check_settings(settings)
    require_new_directory(Path(os.path.realpath(output)))
    job = _open_job(model, text, statistics, importance, settings, written, open_place(device))
    kept_in = work_directory(output) if work is None else Path(work)
    with (
        open_work(kept_in, job.identity, anew=clean) as kept,
        new_directory(output, clean=True) as directory,  # what is worth anything is in the work
    ):
        directories = [directory / each.name if written[1:] else directory for each in written]
        writers = [
            each.writer(path, job.checkpoint, job.grids)
            for each, path in zip(written, directories, strict=True)
        ]
        total = sum(writer.planned_bytes for writer in writers)
        require_space({directory: total, kept.directory: kept_bytes(job.weights, job.grids)})
        with ExitStack() as stack:
            for writer in writers:
                stack.enter_context(writer)
            _quantize_blocks(job, kept)
            return _write_layers(job, kept, writers)


@dataclass(frozen=True)
class _Job:
    """What a run is about, opened and checked."""

    checkpoint: Checkpoint
    decoder: Decoder
    settings: Settings
    weights: Mapping[str, TensorInfo]
    """Of the layers that are quantized, by name without ``.weight``."""
    grids: Mapping[str, LayerGrid]
    calibration: Calibration | None
    """None is a method that needs no activations."""
    importance: Mapping[str, NDArray] | None
    identity: dict[str, Any]


def _open_job(
    model: str | Path,
    text: Sequence[str | Path],
    statistics: str | Path | None,
    importance: str | Path | None,
    settings: Settings,
    formats: Sequence[Format],
    place: Place,
) -> _Job:
    """Read all that a run starts from but the blocks, and check that it goes together."""
    checkpoint = open_checkpoint(model)
    if stored_format(checkpoint) is not None:
        raise ValueError(f"{model}: expected an unquantized checkpoint, got a quantized one")
    decoder = Decoder(checkpoint, place=place)
    shapes = _layer_shapes(checkpoint)
    grids = _grids(checkpoint, settings, formats)
    factors = None
    if importance is not None:
        factors = read_importance(importance, shapes)
    calibration: Calibration | None = None
    tokens = None
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
        calibration = TextCalibration(decoder, tokens, settings.target == "propagated")
    identity = identity_of(checkpoint, settings, formats, place, tokens)
    identity |= stamps_of(statistics=statistics, importance=importance)
    weights = {name: checkpoint.info(f"{name}.weight") for name in shapes}
    return _Job(checkpoint, decoder, settings, weights, grids, calibration, factors, identity)


def _write_layers(job: _Job, kept: Work, writers: Sequence[ModelWriter]) -> list[LayerReport]:
    """Hand all blocks that are kept to the writers; return their reports, with what the layers take."""
    reports = []
    for index in range(job.decoder.config.num_layers):
        block = kept.load(index)
        for name, vector in block.vectors.items():
            for writer in writers:
                writer.add(name, vector)
        for report in block.reports:
            stored = [
                writer.add_layer(report.name, block.layers[report.name]) for writer in writers
            ]
            reports.append(replace(report, stored_bytes=stored[0]))
    return reports


def _grids(
    checkpoint: Checkpoint, settings: Settings, formats: Sequence[Format]
) -> dict[str, LayerGrid]:
    """Say how the model's linear layers are to be stored, and in the log what deviates."""
    weights = {name: checkpoint.info(f"{name}.weight") for name in _layer_shapes(checkpoint)}
    asked = {
        name: LayerGrid(settings.bits, settings.group_size, settings.symmetric, info.dtype)
        for name, info in weights.items()
    }
    grids = common_grids(formats, weights, asked)
    others: dict[tuple[int | None, int | None], set[int]] = {}
    for name, grid in grids.items():
        sizes = asked[name].group_size, grid.group_size
        if sizes[0] != sizes[1]:
            others.setdefault(sizes, set()).add(weights[name].shape[1])
    for (size, taken), channels in others.items():
        divides = any(K % (size or 1) == 0 for K in channels)
        why = "every K, and the file format has one length" if divides else "K"
        K = listed(channels)
        log.warning(
            "group_size %s does not divide %s: groups of %s for K = %s", size, why, taken, K
        )
    return grids


def _layer_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """M and K of the linear layers that are quantized, by name without ``.weight``."""
    shapes = {}
    for index in range(checkpoint.config.num_layers):
        for kind in (kind for stage in DecoderBlock.stages for kind in stage):
            rows, channels = checkpoint.info(f"model.layers.{index}.{kind}.weight").shape
            shapes[f"model.layers.{index}.{kind}"] = rows, channels
    return shapes


def _quantize_blocks(job: _Job, kept: Work) -> None:
    """Quantize every block that is not finished yet, and keep it."""
    layers = job.decoder.config.num_layers
    reports: list[LayerReport] = []
    with Progress(layers) as progress, np.errstate(**SILENT):
        for index in range(layers):
            progress.show(f"block {index + 1} of {layers}: reading")
            if index < kept.finished:
                finished = kept.load(index)
                if kept.finished < layers and job.calibration is not None:
                    _skip_block(job, job.decoder.block(index), finished, job.calibration)
            else:
                block = job.decoder.block(index)
                job.checkpoint.check_unchanged()
                finished = _quantize_block(job, index, block, reports, progress)
                kept.save(index, finished)
            reports += finished.reports
            progress.step(f"block {index + 1} of {layers}")
        kept.settle()
    _warn_of_calibration(reports)


def _quantize_block(
    job: _Job,
    index: int,
    block: DecoderBlock,
    before: Sequence[LayerReport],
    progress: Progress,
) -> FinishedBlock:
    """Quantize a block, whose weights are replaced; `before` are the reports of those before it."""
    settings, count = job.settings, job.decoder.config.num_layers
    at = f"block {index + 1} of {count}"
    layer_settings = _layer_settings(block, settings, job.grids)
    done = FinishedBlock({}, [], {}, {})
    stages: Iterable[tuple[Stage, InputStatistics | None]]
    if job.calibration is None:
        stages = [(stage, None) for stage in block.stages]
    else:
        folded: dict[Stage, NDArray] = {}
        if settings.channel_scales == "awq":
            progress.show(f"{at}: scaling channels")
            preview = job.calibration.preview(index, block)
            folded = _fold_scales(job, block, preview, layer_settings, done)
        stages = job.calibration.stages(index, block, folded)
    for stage, statistics in stages:
        for kind in stage:
            progress.show(f"{at}: quantizing {kind}")
            name = f"{block.name}.{kind}"
            factors = None
            if job.importance is not None:
                factors = job.decoder.place.put(job.importance[name])
            quantized, report = quantize_layer(
                name, block.linears[kind], statistics, layer_settings[kind], factors
            )
            # no codebooks: see settings.check
            assert isinstance(quantized, QuantizedWeight)
            block.linears[kind] = quantized.dequantize(block.dtype)
            done.layers[name] = quantized.to_host()
            done.reports.append(report)
        _check_fallbacks([*before, *done.reports], len(block.linears) * count, settings)
        progress.show(f"{at}: running the text through it")
    return done


def _skip_block(
    job: _Job, block: DecoderBlock, finished: FinishedBlock, calibration: Calibration
) -> None:
    """Do to the calibration what quantizing a block did to it: the same folds, the same weights."""
    place = job.decoder.place
    for stage in block.stages:
        if stage[0] in finished.scales:
            scales = place.put(finished.scales[stage[0]])
            block.fold(stage, scales, _vector_dtype(job, block))
    original = block.copied()
    for kind in block.linears:
        weight = finished.layers[f"{block.name}.{kind}"]
        arrays = {name: place.put(getattr(weight, name)) for name in ("codes", "scales", "zeros")}
        block.linears[kind] = replace(weight, **arrays).dequantize(block.dtype)
    calibration.skip(block, original)


def _layer_settings(
    block: DecoderBlock, settings: Settings, grids: Mapping[str, LayerGrid]
) -> dict[str, LayerSettings]:
    """Settings of each of a block's linear layers, by short name: on its grid, as stored."""
    return {kind: _on_grid(settings, grids[f"{block.name}.{kind}"]) for kind in block.linears}


def _on_grid(settings: Settings, grid: LayerGrid) -> LayerSettings:
    return replace(
        settings,
        bits=grid.bits,
        group_size=grid.group_size,
        symmetric=grid.symmetric,
        scale_dtype=grid.scale_dtype,
    )


def _fold_scales(
    job: _Job,
    block: DecoderBlock,
    preview: Sequence[tuple[Stage, InputStatistics]],
    layer_settings: Mapping[str, LayerSettings],
    done: FinishedBlock,
) -> dict[Stage, NDArray]:
    """Scale the block's channels by AWQ where something can take up the scales.

    Returns the scales by stage; what was found, and the vectors that changed, go to `done`.
    """
    folded: dict[Stage, NDArray] = {}
    for stage, statistics in preview:
        if block.producer(stage) is None:
            continue
        found = awq_scales(
            [block.linears[kind] for kind in stage],
            statistics.hessian,
            statistics.mean_abs if job.settings.awq_magnitude == "mean" else statistics.max_abs,
            weight_term=job.settings.awq_weight_term,
            bits=layer_settings[stage[0]].bits,
            group_size=layer_settings[stage[0]].group_size,
            symmetric=layer_settings[stage[0]].symmetric,
            scale_dtype=layer_settings[stage[0]].scale_dtype,
        )
        done.scales[stage[0]] = to_host(found.scales)
        folded[stage], changed = block.fold(stage, found.scales, _vector_dtype(job, block))
        done.vectors.update({f"{block.name}.{name}": vector for name, vector in changed.items()})
    return folded


def _vector_dtype(job: _Job, block: DecoderBlock) -> np.dtype:
    """In what a block's norms and biases are stored."""
    return job.checkpoint.info(f"{block.name}.input_layernorm.weight").dtype


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
