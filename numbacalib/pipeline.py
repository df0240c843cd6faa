"""The quantizer and the evaluation of whole models, one decoder block in memory at a time."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.compressed_tensors import PackedLayout, is_compressed, weight_reader
from numbacalib.formats.output_directory import new_directory
from numbacalib.formats.safetensors_writer import SafetensorsWriter
from numbacalib.methods import QuantizedWeight, gptq, proxy_loss, rtn
from numbacalib.models import (
    Checkpoint,
    Decoder,
    DecoderBlock,
    ModelConfig,
    open_checkpoint,
)
from numbacalib.progress import Progress
from numbacalib.runtime import checks
from numbacalib.statistics import InputStatistics
from numbacalib.text import read_sequences

log = logging.getLogger("numbacalib")

METHODS = ("gptq", "rtn")
BATCH_TOKENS = 4096
"""Tokens that go through a layer together: enough for full-speed products, bounded in memory."""
SWEEP_TOKENS = 65536
"""Tokens whose states an evaluation holds at a time."""


class Settings(NamedTuple):
    """How to quantize the linear layers of a model."""

    method: str = "gptq"
    bits: int = 4
    group_size: int | None = 128
    """Input channels that share a scale; None is one scale a row."""
    symmetric: bool = False
    samples: int = 64
    """Calibration sequences, evenly spaced over the text."""
    sequence_length: int = 512
    percdamp: float = 0.01


class LayerResult(NamedTuple):
    """How one linear layer went."""

    name: str
    shape: tuple[int, int]
    group_size: int
    loss: float | None
    """``trace(D H D^T)``; None where nothing was calibrated."""
    rtn_loss: float | None
    """The same for round-to-nearest."""
    damping: float | None
    seconds: float
    stored_bytes: int
    """Bytes of the layer's packed tensors."""


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
    model: str | Path, output: str | Path, *, text: Sequence[str | Path] = (), settings: Settings
) -> list[LayerResult]:
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
    settings : Settings

    Returns
    -------
    list of LayerResult
        In the order in which the layers ran.

    Raises
    ------
    ValueError, TypeError, OSError
        If an input does not fit; nothing has been written then.
    numpy.linalg.LinAlgError
        If a layer's damped Hessian is not positive definite.
    """
    if settings.method not in METHODS:
        raise ValueError(f"method: expected {' or '.join(METHODS)}, got {settings.method!r}")
    checks.integer("bits", settings.bits, 2, 8)
    if settings.group_size is not None:
        checks.integer("group_size", settings.group_size, 1, 1 << 31)
    checkpoint = open_checkpoint(model)
    if is_compressed(checkpoint.hf_config()):
        raise ValueError(f"{model}: expected an unquantized checkpoint, got a quantized one")
    decoder = Decoder(checkpoint)
    layout = _layout(checkpoint, settings)
    tokens = None
    if settings.method == "gptq":
        tokens = read_sequences(
            checkpoint.tokenizer, text, settings.sequence_length, settings.samples
        )
    with new_directory(output) as directory:
        with SafetensorsWriter(directory) as writer:
            results = _quantize_blocks(checkpoint, decoder, tokens, settings, layout, writer)
            packed = {f"{result.name}.weight" for result in results}
            for name in checkpoint.names():
                if name not in packed:
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
                for part in _batches(hidden):
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
    channels = {}
    for index in range(checkpoint.config.num_layers):
        for kind in (kind for stage in DecoderBlock.stages for kind in stage):
            name = f"model.layers.{index}.{kind}"
            channels[name] = checkpoint.info(f"{name}.weight").shape[1]
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


def _quantize_blocks(
    checkpoint: Checkpoint,
    decoder: Decoder,
    tokens: NDArray[np.int64] | None,
    settings: Settings,
    layout: PackedLayout,
    writer: SafetensorsWriter,
) -> list[LayerResult]:
    """Quantize block after block; `tokens` None is a method that needs no activations."""
    layers = decoder.config.num_layers
    whole_row = frozenset(layout.whole_row)
    hidden = None if tokens is None else decoder.embed(tokens)
    results = []
    with Progress(layers * len(DecoderBlock.stages)) as progress:
        for index in range(layers):
            progress.show(f"block {index + 1} of {layers}: reading")
            block = decoder.block(index)
            for stage, statistics in _stages(block, decoder.config, hidden):
                for kind in stage:
                    progress.show(f"block {index + 1} of {layers}: quantizing {kind}")
                    name = f"model.layers.{index}.{kind}"
                    try:
                        quantized, result = _quantize_layer(
                            block.linears[kind],
                            statistics,
                            settings,
                            None if name in whole_row else settings.group_size,
                            scale_dtype(checkpoint.info(f"{name}.weight").dtype),
                        )
                    except (ValueError, np.linalg.LinAlgError) as error:
                        raise type(error)(f"{name}: {error}") from None
                    block.linears[kind] = quantized.dequantize()
                    tensors = layout.pack(quantized)
                    for part, tensor in tensors.items():
                        writer.add(f"{name}.{part}", tensor)
                    stored = sum(tensor.nbytes for tensor in tensors.values())
                    results.append(result._replace(name=name, stored_bytes=stored))
                progress.step(f"block {index + 1} of {layers}" if stage == block.stages[-1] else "")
                progress.show(f"block {index + 1} of {layers}: running the text through it")
    return results


def _stages(
    block: DecoderBlock, config: ModelConfig, hidden: NDArray[np.float32] | None
) -> Iterator[tuple[tuple[str, ...], InputStatistics | None]]:
    """Pass all sequences through a block, in place, stopping where a stage's inputs are known.

    Yields the names of the layers that share an input, and that input's statistics; the caller
    replaces the layers' weights before it goes on, so that what follows runs on quantized ones. Only
    the residual stream and the attention's result are held for all tokens: the MLP's wide
    activations are computed twice instead.
    """
    if hidden is None:
        yield from ((stage, None) for stage in block.stages)
        return
    attention, projection, expansion, contraction = block.stages

    statistics = InputStatistics(config.hidden_size)
    for part in _batches(hidden):
        statistics.update(block.attention_input(part))
    yield attention, statistics

    statistics = InputStatistics(config.num_heads * config.head_dim)
    contexts = []
    for part in _batches(hidden):
        contexts.append(block.attention(block.attention_input(part)))
        statistics.update(contexts[-1])
    yield projection, statistics

    statistics = InputStatistics(config.hidden_size)
    for part, context in zip(_batches(hidden), contexts, strict=True):
        part[...] = block.attention_output(part, context)
        statistics.update(block.mlp_input(part))
    yield expansion, statistics

    statistics = InputStatistics(config.intermediate_size)
    for part in _batches(hidden):
        statistics.update(block.mlp(block.mlp_input(part)))
    yield contraction, statistics

    for part in _batches(hidden):
        part[...] = block.mlp_output(part, block.mlp(block.mlp_input(part)))


def _batches(hidden: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Runs of whole sequences of [S, T, hidden], about `BATCH_TOKENS` tokens each."""
    step = max(1, BATCH_TOKENS // hidden.shape[1])
    for start in range(0, len(hidden), step):
        yield hidden[start : start + step]


def _quantize_layer(
    weight: NDArray[np.float32],
    statistics: InputStatistics | None,
    settings: Settings,
    group_size: int | None,
    scales: np.dtype,
) -> tuple[QuantizedWeight, LayerResult]:
    """Quantize one layer by the chosen method, and measure it against round-to-nearest."""
    begin = time.perf_counter()
    options = {
        "bits": settings.bits,
        "group_size": group_size,
        "symmetric": settings.symmetric,
        "scale_dtype": scales,
    }
    quantized = rtn(weight, **options)
    loss = rtn_loss = damping = None
    if statistics is not None:
        rtn_loss = proxy_loss(weight, quantized, statistics.hessian)
        quantized, report = gptq(weight, statistics.hessian, percdamp=settings.percdamp, **options)
        damping = report.damping
        loss = proxy_loss(weight, quantized, statistics.hessian)
    seconds = time.perf_counter() - begin
    rows, channels = weight.shape
    size = quantized.group_size
    result = LayerResult("", (rows, channels), size, loss, rtn_loss, damping, seconds, 0)
    return quantized, result


def _write_description(directory: Path, checkpoint: Checkpoint, layout: PackedLayout) -> None:
    """Write config.json with its quantization, and the tokenizer's files."""
    config = checkpoint.hf_config() | {"quantization_config": layout.quantization_config()}
    text = json.dumps(config, indent=2) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")
    for name, content in checkpoint.tokenizer_files().items():
        (directory / name).write_bytes(content)
