"""The quantizer and the evaluation of whole models, one decoder block in memory at a time."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.calibration import (
    Calibration,
    SavedCalibration,
    Stage,
    TextCalibration,
    batches,
)
from numbacalib.formats.compressed_tensors import PackedLayout, is_compressed, weight_reader
from numbacalib.formats.output_directory import new_directory
from numbacalib.formats.safetensors_writer import SafetensorsWriter
from numbacalib.importance import read_importance
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
    open_checkpoint,
)
from numbacalib.progress import Progress
from numbacalib.runtime import checks
from numbacalib.statistics import InputStatistics
from numbacalib.text import read_sequences

log = logging.getLogger("numbacalib")

CHANNEL_SCALES = ("none", "awq")
MAGNITUDES = ("mean", "max")
SWEEP_TOKENS = 65536
"""Tokens whose states an evaluation holds at a time."""


@dataclass(frozen=True, kw_only=True)
class Settings(LayerSettings):
    """How to quantize the linear layers of a model; each layer's `scale_dtype` is the model's own."""

    act_order: str = "desc"
    static_groups: bool = True
    """With "desc", a model's perplexity is lower than with the order as it comes."""
    channel_scales: str = "none"
    """Scale input channels first, and fold that into what produces them: "none" or "awq"."""
    awq_magnitude: str = "mean"
    """What the scales are powers of: "mean" or "max" of a channel's absolute inputs."""
    awq_weight_term: bool = False
    """Whether the scales also fall with the channel's weights: see `awq_scales`."""
    samples: int = 64
    """Calibration sequences, evenly spaced over the text."""
    sequence_length: int = 512
    max_fallbacks: float = 0.1
    """Share of the layers that may need more damping than was asked for before the run fails."""


class Evaluation(NamedTuple):
    """Next-token prediction over a text."""

    loss: float
    """Mean negative log likelihood, nats a token."""
    tokens: int
    """Tokens predicted."""

    @property
    def perplexity(self) -> float:
        """``exp(loss)``."""
        return math.exp(self.loss)


def quantize(
    model: str | Path,
    output: str | Path,
    *,
    text: Sequence[str | Path] = (),
    statistics: str | Path | None = None,
    importance: str | Path | None = None,
    settings: Settings,
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
        What `numbacalib.calibration.collect` left, instead of a text.
    importance : path, optional
        What `numbacalib.importance.read_importance` reads, for the ranges "weighted" instead of the
        mean squares of the text.
    settings : Settings

    Returns
    -------
    list of LayerReport
        In the order in which the layers ran.

    Raises
    ------
    ValueError, TypeError, OSError
        If an input does not fit; nothing has been written then.
    numpy.linalg.LinAlgError
        If a layer's damped Hessian is not positive definite, or too many were not at first.
    """
    _check(settings, importance)
    checkpoint = open_checkpoint(model)
    if is_compressed(checkpoint.hf_config()):
        raise ValueError(f"{model}: expected an unquantized checkpoint, got a quantized one")
    decoder = Decoder(checkpoint)
    layout = _layout(checkpoint, settings)
    factors = None
    if importance is not None:
        factors = read_importance(importance)
        if missing := [name for name in _layer_names(checkpoint) if name not in factors]:
            raise ValueError(f"{importance}: expected the importance of {missing[0]}, got none")
    calibration: Calibration | None = None
    if statistics is not None:
        if text:
            raise ValueError("text: expected none where statistics are given")
        calibration = SavedCalibration(statistics)
    elif settings.calibrated(importance is not None) or settings.channel_scales != "none":
        tokens = read_sequences(
            checkpoint.tokenizer, text, settings.sequence_length, settings.samples
        )
        calibration = TextCalibration(decoder, tokens)
    with new_directory(output) as directory:
        with SafetensorsWriter(directory) as writer:
            results = _quantize_blocks(
                checkpoint, decoder, calibration, factors, settings, layout, writer
            )
            packed = {f"{result.name}.weight" for result in results}
            for name in checkpoint.names():
                if name not in packed and name not in writer:
                    writer.add(name, checkpoint.tensor(name))
        _write_description(directory, checkpoint, layout)
    return results


def evaluate(
    model: str | Path,
    text: Sequence[str | Path],
    *,
    sequence_length: int = 512,
    samples: int | None = None,
) -> Evaluation:
    """Perplexity of a model, quantized or not, on a text cut into sequences of one length.

    Every token but the first of its sequence is predicted from those before it in the sequence.

    Parameters
    ----------
    model : path
        A Hugging Face directory (plain or compressed-tensors `pack-quantized`) or a GGUF file.
    text : sequence of paths
        UTF-8 text files.
    sequence_length : int, default 512
    samples : int, optional
        Sequences to take, evenly spaced over the text; all by default.
    """
    checkpoint = open_checkpoint(model)
    compressed = is_compressed(checkpoint.hf_config())
    decoder = Decoder(checkpoint, weight_reader(checkpoint) if compressed else None)
    tokens = read_sequences(checkpoint.tokenizer, text, sequence_length, samples)
    sweeps = np.array_split(tokens, -(-tokens.size // SWEEP_TOKENS))
    total = 0.0
    with Progress(len(sweeps) * decoder.config.num_layers) as progress:
        for sweep in sweeps:
            hidden = decoder.embed(sweep)
            for index in range(decoder.config.num_layers):
                progress.show(f"evaluating block {index + 1} of {decoder.config.num_layers}")
                block = decoder.block(index)
                for part in batches(hidden):
                    part[...] = block.forward(part)
                progress.step()
            total += float(decoder.token_losses(hidden, sweep).sum(dtype=np.float64))
    predicted = tokens.size - len(tokens)
    return Evaluation(total / predicted, predicted)


def scale_dtype(weight_dtype: np.dtype) -> np.dtype:
    """What a layer's scales are stored in: the model's own dtype.

    compressed-tensors multiplies codes by scales in the scales' dtype and converts afterwards, so
    that any other choice would round the weights twice.
    """
    return np.dtype(np.float32) if weight_dtype == np.float64 else weight_dtype


def _layout(checkpoint: Checkpoint, settings: Settings) -> PackedLayout:
    """Say how the model's linear layers are to be stored, and in the log what deviates."""
    channels = {
        name: checkpoint.info(f"{name}.weight").shape[1] for name in _layer_names(checkpoint)
    }
    layout = PackedLayout(
        channels,
        bits=settings.bits,
        group_size=settings.group_size,
        symmetric=settings.symmetric,
    )
    for length in sorted({channels[name] for name in layout.whole_row}):
        kinds = {name.split(".", 3)[3] for name in layout.whole_row if channels[name] == length}
        log.warning(
            "group_size %s does not divide K = %d: one scale a row for %s",
            settings.group_size,
            length,
            ", ".join(sorted(kinds)),
        )
    if layout.stored_group_size != settings.group_size:
        log.warning(
            "the file format has one group size a model: scales are repeated to groups of %d",
            layout.stored_group_size,
        )
    return layout


def _layer_names(checkpoint: Checkpoint) -> list[str]:
    """Names of the linear layers that are quantized, without ``.weight``."""
    return [
        f"model.layers.{index}.{kind}"
        for index in range(checkpoint.config.num_layers)
        for stage in DecoderBlock.stages
        for kind in stage
    ]


def _check(settings: Settings, importance: str | Path | None) -> None:
    """Check what does not depend on a layer, before anything is read."""
    settings.check()
    if settings.method == "kmeans":
        raise ValueError("method: expected gptq or rtn, since the file format has no codebooks")
    checks.integer("bits", settings.bits, 2, 8)
    if settings.group_size is not None:
        checks.integer("group_size", settings.group_size, 1, 1 << 31)
    if settings.channel_scales not in CHANNEL_SCALES:
        raise ValueError(
            f"channel_scales: expected {' or '.join(CHANNEL_SCALES)}, "
            f"got {settings.channel_scales!r}"
        )
    if settings.awq_magnitude not in MAGNITUDES:
        raise ValueError(
            f"awq_magnitude: expected {' or '.join(MAGNITUDES)}, got {settings.awq_magnitude!r}"
        )
    if importance is not None and settings.channel_scales != "none":
        raise ValueError(
            "importance: expected none with channel scales, which change the weights it is of"
        )
    if importance is not None and settings.ranges != "weighted":
        raise ValueError(f"importance: expected none with ranges {settings.ranges!r}")
    if settings.act_order == "desc" and not settings.static_groups:
        raise ValueError(
            "act_order: expected static_groups with 'desc', since the file format has no g_idx"
        )


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
    whole_row = frozenset(layout.whole_row)
    reports: list[LayerReport] = []
    with Progress(layers * len(DecoderBlock.stages)) as progress:
        for index in range(layers):
            at = f"block {index + 1} of {layers}"
            prefix = f"model.layers.{index}"
            progress.show(f"{at}: reading")
            block = decoder.block(index)
            layer_settings = {
                kind: replace(
                    settings,
                    group_size=None if f"{prefix}.{kind}" in whole_row else settings.group_size,
                    scale_dtype=scale_dtype(checkpoint.info(f"{prefix}.{kind}.weight").dtype),
                )
                for kind in block.linears
            }
            stages: Iterable[tuple[Stage, InputStatistics | None]]
            if calibration is None:
                stages = [(stage, None) for stage in block.stages]
            else:
                folded: dict[Stage, NDArray] = {}
                if settings.channel_scales == "awq":
                    progress.show(f"{at}: scaling channels")
                    dtype = checkpoint.info(f"{prefix}.input_layernorm.weight").dtype
                    preview = calibration.preview(index, block)
                    folded, vectors = _fold_scales(block, preview, settings, layer_settings, dtype)
                    for name, vector in vectors.items():
                        writer.add(f"{prefix}.{name}", vector)
                stages = calibration.stages(index, block, folded)
            for stage, statistics in stages:
                for kind in stage:
                    progress.show(f"{at}: quantizing {kind}")
                    name = f"{prefix}.{kind}"
                    factors = None if importance is None else importance[name]
                    quantized, report = quantize_layer(
                        name, block.linears[kind], statistics, layer_settings[kind], factors
                    )
                    assert isinstance(quantized, QuantizedWeight)  # no codebooks: see _check
                    block.linears[kind] = quantized.dequantize()
                    tensors = layout.pack(quantized)
                    for part, tensor in tensors.items():
                        writer.add(f"{name}.{part}", tensor)
                    stored = sum(tensor.nbytes for tensor in tensors.values())
                    reports.append(replace(report, stored_bytes=stored))
                _check_fallbacks(reports, len(block.linears) * layers, settings)
                progress.step(at if stage == block.stages[-1] else "")
                progress.show(f"{at}: running the text through it")
    _warn_of_rank(reports)
    return reports


def _fold_scales(
    block: DecoderBlock,
    preview: Sequence[tuple[Stage, InputStatistics]],
    settings: Settings,
    layer_settings: Mapping[str, LayerSettings],
    dtype: np.dtype,
) -> tuple[dict[Stage, NDArray], dict[str, NDArray]]:
    """Scale the block's channels by AWQ where something can take up the scales.

    Returns the scales by stage, and the block's vectors that changed, as `dtype`.
    """
    folded: dict[Stage, NDArray] = {}
    vectors: dict[str, NDArray] = {}
    for stage, statistics in preview:
        if block.producer(stage) is None:
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


def _warn_of_rank(reports: Sequence[LayerReport]) -> None:
    """Say how many layers had fewer tokens than channels."""
    poor = [report for report in reports if report.full_rank is False]
    if poor:
        log.warning(
            "%d of %d layers had fewer tokens than channels (%d for %d, %s): calibrate on more text, "
            "or shrink the Hessian toward its diagonal",
            len(poor),
            len(reports),
            poor[0].tokens,
            poor[0].shape[1],
            poor[0].name,
        )


def _write_description(directory: Path, checkpoint: Checkpoint, layout: PackedLayout) -> None:
    """Write config.json with its quantization, and the tokenizer's files."""
    config = checkpoint.hf_config() | {"quantization_config": layout.quantization_config()}
    text = json.dumps(config, indent=2) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")
    for name, content in checkpoint.tokenizer_files().items():
        (directory / name).write_bytes(content)
