"""The quantizer of whole models, one decoder block in memory at a time."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.compressed_tensors import PackedLayout, is_compressed, pack, packed_bytes
from numbacalib.formats.group_lengths import listed
from numbacalib.formats.output_directory import new_directory
from numbacalib.formats.safetensors_writer import SafetensorsWriter
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
    open_checkpoint,
    open_place,
)
from numbacalib.models.layer_tensors import beside, stages
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
    device: str = "auto",
    clean: bool = False,
) -> list[LayerReport]:
    """Quantize the linear layers of a model's decoder blocks and write a loadable checkpoint.

    GPTQ runs block by block and layer by layer on the activations that the layers quantized before
    produce; layers that share an input share its Hessian. Embeddings, norms, biases and the head are
    copied as they are. `output` is a Hugging Face directory in the compressed-tensors
    `pack-quantized` format; it appears when it is complete.

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
    """
    check(settings, importance)
    place = open_place(device)
    with new_directory(output, clean=clean) as directory:
        return _write_checkpoint(directory, model, text, statistics, importance, settings, place)


def _write_checkpoint(
    directory: Path,
    model: str | Path,
    text: Sequence[str | Path],
    statistics: str | Path | None,
    importance: str | Path | None,
    settings: Settings,
    place: Place,
) -> list[LayerReport]:
    """Do what `quantize` does, into a directory; what is small is written before the first block."""
    checkpoint = open_checkpoint(model)
    if is_compressed(checkpoint.hf_config()):
        raise ValueError(f"{model}: expected an unquantized checkpoint, got a quantized one")
    decoder = Decoder(checkpoint, place=place)
    layout = _layout(checkpoint, settings)
    packed = {f"{name}.weight" for name in layout.group_sizes}
    copied = [name for name in checkpoint.names() if name not in packed]
    copied_bytes = sum(map(checkpoint.stored_bytes, copied))
    require_space(directory, copied_bytes + _packed_bytes(checkpoint, layout, settings))
    _write_description(directory, checkpoint, layout)
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
    with SafetensorsWriter(directory) as writer:
        results = _quantize_blocks(
            checkpoint, decoder, calibration, factors, settings, layout, writer
        )
        for name in copied:
            stored_name = checkpoint.stored_name(name)
            if stored_name not in writer:  # a norm that took up channel scales
                writer.add_stored(stored_name, checkpoint.stored(name))
    return results


def _packed_bytes(checkpoint: Checkpoint, layout: PackedLayout, settings: Settings) -> int:
    """Bytes of all layers that are quantized, as they will be stored."""
    total = 0
    for name, group_size in layout.group_sizes.items():
        shape, dtype = checkpoint.info(f"{name}.weight")
        total += packed_bytes(
            (shape[0], shape[1]),
            group_size,
            bits=settings.bits,
            symmetric=settings.symmetric,
            scale_dtype=scale_dtype(dtype),
        )
    return total


def scale_dtype(weight_dtype: np.dtype) -> np.dtype:
    """What a layer's scales are stored in: the model's own dtype.

    compressed-tensors multiplies codes by scales in the scales' dtype and converts afterwards, so
    that any other choice would round the weights twice.
    """
    return np.dtype(np.float32) if weight_dtype == np.float64 else weight_dtype


def _layout(checkpoint: Checkpoint, settings: Settings) -> PackedLayout:
    """Say how the model's linear layers are to be stored, and in the log what deviates."""
    shapes = _layer_shapes(checkpoint)
    asked, symmetric = settings.group_size, settings.symmetric
    layout = PackedLayout(shapes, bits=settings.bits, group_size=asked, symmetric=symmetric)
    others: dict[int | None, set[int]] = {}
    for name, size in layout.group_sizes.items():
        if size != asked:
            others.setdefault(size, set()).add(shapes[name][1])
    if others:
        taken = ", ".join(f"{size} for K = {listed(K)}" for size, K in others.items())
        why = (
            f"does not divide {'K' if symmetric else 'every K, and the file format has one length'}"
        )
        log.warning("group_size %s %s: groups of %s", asked, why, taken)
    return layout


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
    layout: PackedLayout,
    writer: SafetensorsWriter,
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
            layer_settings = _layer_settings(checkpoint, block, settings, layout)
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
                        writer.add(checkpoint.stored_name(f"{block.name}.{name}"), vector)
                run = calibration.stages(index, block, folded)
            for stage, statistics in run:
                for kind in stage:
                    progress.show(f"{at}: quantizing {kind}")
                    name = f"{block.name}.{kind}"
                    factors = None
                    if importance is not None:
                        factors = decoder.place.put(importance[name])
                    quantized, report = quantize_layer(
                        name, block.linears[kind], statistics, layer_settings[kind], factors
                    )
                    # no codebooks: see settings.check
                    assert isinstance(quantized, QuantizedWeight)
                    block.linears[kind] = quantized.dequantize(block.dtype)
                    tensors = pack(quantized.to_host())
                    for part, tensor in tensors.items():
                        writer.add(checkpoint.stored_name(f"{name}.{part}"), tensor)
                    stored = sum(tensor.nbytes for tensor in tensors.values())
                    reports.append(replace(report, stored_bytes=stored))
                _check_fallbacks(reports, len(block.linears) * layers, settings)
                progress.step(at if stage == block.stages[-1] else "")
                progress.show(f"{at}: running the text through it")
    _warn_of_calibration(reports)
    return reports


def _layer_settings(
    checkpoint: Checkpoint, block: DecoderBlock, settings: Settings, layout: PackedLayout
) -> dict[str, LayerSettings]:
    """Settings of each of a block's linear layers, by short name: groups and scales as stored."""
    return {
        kind: replace(
            settings,
            group_size=layout.group_sizes[f"{block.name}.{kind}"],
            scale_dtype=scale_dtype(checkpoint.info(f"{block.name}.{kind}.weight").dtype),
        )
        for kind in block.linears
    }


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


def _write_description(directory: Path, checkpoint: Checkpoint, layout: PackedLayout) -> None:
    """Write config.json with its quantization, and the tokenizer's files."""
    ignore = ["lm_head", *beside(checkpoint.config, checkpoint.names())]
    config = checkpoint.hf_config() | {"quantization_config": layout.quantization_config(ignore)}
    text = json.dumps(config, indent=2) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")
    for name, content in checkpoint.tokenizer_files().items():
        (directory / name).parent.mkdir(exist_ok=True)  # of additional chat templates
        (directory / name).write_bytes(content)
