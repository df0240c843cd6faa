"""What the linear layers of a model are fed: statistics of a text run through it, or from files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.imatrix import write_imatrix
from numbacalib.formats.output_directory import new_directory
from numbacalib.models import (
    EMBEDDINGS,
    Checkpoint,
    Decoder,
    DecoderBlock,
    ModelConfig,
    open_checkpoint,
)
from numbacalib.ops.magnitudes import channel_magnitudes
from numbacalib.ops.matrix import to_host
from numbacalib.quantizer.fingerprint import hash_tensors, require_same_model, write_fingerprint
from numbacalib.quantizer.progress import Progress
from numbacalib.quantizer.settings import check_sequences
from numbacalib.quantizer.text import read_sequences
from numbacalib.runtime.checks import rows_of
from numbacalib.runtime.finite import require_finite
from numbacalib.statistics import (
    InputStatistics,
    load_statistics,
    save_statistics,
    stored_channels,
)

BATCH_TOKENS = 4096
"""Tokens that go through a layer together: enough for full-speed products, bounded in memory."""
HELD_ELEMENTS = 1 << 28
"""MLP activations that are held rather than computed twice: 1 GiB of float32."""

LARGEST_HIDDEN = 1e17
"""Of a norm's inputs: the squares of 30,000 of them stay within float32."""

SILENT: dict[str, Any] = {"over": "ignore", "invalid": "ignore"}
"""For `np.errstate` around what is checked: an overflow is named by its layer, not by NumPy too."""

IMATRIX = "imatrix.gguf"
"""Name of the importance file beside the statistics."""

Stage = tuple[str, ...]
"""Short names of the layers of a block that share an input."""


class Calibration(Protocol):
    """Where the statistics of a block's inputs come from; blocks are asked for in their order."""

    def preview(self, index: int, block: DecoderBlock) -> Sequence[tuple[Stage, InputStatistics]]:
        """Statistics of all stages of the block as it is."""

    def stages(
        self, index: int, block: DecoderBlock, folded: Mapping[Stage, NDArray]
    ) -> Iterable[tuple[Stage, InputStatistics]]:
        """Statistics of stage after stage, while the caller replaces each stage's weights.

        `folded` holds the channel scales by which inputs are divided since the preview.
        """


class TextCalibration:
    """A text that runs through the model while its blocks are quantized.

    Each stage sees what the quantized layers before it produce.

    Parameters
    ----------
    decoder : Decoder
    tokens : int64 array [S, T]
    """

    def __init__(self, decoder: Decoder, tokens: NDArray[np.int64]) -> None:
        self._config = decoder.config
        self._hidden = decoder.embed(tokens)

    def preview(self, index: int, block: DecoderBlock) -> list[tuple[Stage, InputStatistics]]:
        """See `Calibration`."""
        del index
        return list(run_stages(block, self._config, self._hidden.copy()))

    def stages(
        self, index: int, block: DecoderBlock, folded: Mapping[Stage, NDArray]
    ) -> Iterator[tuple[Stage, InputStatistics]]:
        """See `Calibration`; what was folded shows in the inputs themselves."""
        del index, folded
        return run_stages(block, self._config, self._hidden)


class SavedCalibration:
    """Statistics that `collect` left in a directory: no text, and no pass through the model.

    Raises
    ------
    ValueError, FileNotFoundError
        On construction, before any work: if they are of another model, or a block's are missing,
        damaged or of other widths.
    """

    def __init__(self, directory: str | Path, checkpoint: Checkpoint, decoder: Decoder) -> None:
        self._directory = Path(directory)
        if not self._directory.is_dir():
            raise FileNotFoundError(f"{directory}: no such directory")
        require_same_model(self._directory, checkpoint, decoder)
        for index in range(decoder.config.num_layers):
            file = self._file(index)
            if not file.is_file():
                raise FileNotFoundError(f"{file}: no such file")
            stored = stored_channels(file)
            for stage in DecoderBlock.stages:
                name = f"model.layers.{index}.{stage[0]}"
                channels = checkpoint.info(f"{name}.weight").shape[1]
                if stored.get(name) != channels:
                    raise ValueError(
                        f"{file}: expected statistics of {name} over {channels} channels, "
                        f"got {stored.get(name, 'none')}"
                    )

    def preview(self, index: int, block: DecoderBlock) -> list[tuple[Stage, InputStatistics]]:
        """See `Calibration`."""
        saved = load_statistics(self._file(index))
        return [(stage, saved[f"{block.name}.{stage[0]}"]) for stage in block.stages]

    def _file(self, index: int) -> Path:
        return self._directory / _file_name(index)

    def stages(
        self, index: int, block: DecoderBlock, folded: Mapping[Stage, NDArray]
    ) -> Iterator[tuple[Stage, InputStatistics]]:
        """See `Calibration`."""
        for stage, statistics in self.preview(index, block):
            yield stage, statistics.divided(folded[stage]) if stage in folded else statistics


def collect(
    model: str | Path,
    output: str | Path,
    *,
    text: Sequence[str | Path],
    samples: int = 64,
    sequence_length: int = 512,
) -> None:
    """Run a text through a model and save the statistics of all its linear layers' inputs.

    Parameters
    ----------
    model : path
        A Hugging Face directory or a GGUF file.
    output : path
        Absent, or an empty directory: one file a decoder block, `IMATRIX` for
        ``llama-quantize --imatrix``, and a fingerprint of the model. It appears when it is complete.
    text, samples, sequence_length
        As in `numbacalib.quantizer.quantize`.
    """
    check_sequences(samples, sequence_length)
    checkpoint = open_checkpoint(model)
    decoder = Decoder(checkpoint)
    tokens = read_sequences(checkpoint.tokenizer, text, sequence_length, samples)
    layers = decoder.config.num_layers
    with new_directory(output) as directory, Progress(layers) as progress, np.errstate(**SILENT):
        hidden = decoder.embed(tokens)
        hashes = hash_tensors(checkpoint, [EMBEDDINGS])
        squares = {}
        for index in range(layers):
            progress.show(f"block {index + 1} of {layers}")
            block = decoder.block(index)
            hashes |= hash_tensors(checkpoint, decoder.block_tensors(index))
            checkpoint.check_unchanged()
            found = {
                f"{block.name}.{kind}": statistics
                for stage, statistics in run_stages(block, decoder.config, hidden)
                for kind in stage
            }
            save_statistics(directory / _file_name(index), found)
            for name, inputs in found.items():
                squares[name] = _Squares(inputs.tokens, inputs.mean_square)
            progress.step(f"block {index + 1} of {layers}")
        datasets = [Path(file).name for file in text]
        write_imatrix(directory / IMATRIX, squares, datasets=datasets, chunk_size=sequence_length)
        write_fingerprint(directory, checkpoint, hashes)


class _Squares(NamedTuple):
    """What an importance file needs of a layer, once its Hessian is on disk."""

    tokens: int
    mean_square: NDArray[np.float32]


def run_stages(
    block: DecoderBlock, config: ModelConfig, hidden: NDArray[np.float32]
) -> Iterator[tuple[Stage, InputStatistics]]:
    """Pass all sequences through a block, in place, stopping where a stage's inputs are known.

    Yields the names of the layers that share an input, and that input's statistics; the caller
    replaces the layers' weights before it goes on, so that what follows runs on quantized ones. The
    residual stream and the attention's result are held for all tokens; the MLP's wide activations
    only where they are small, else they are computed twice.
    """
    attention, projection, expansion, contraction = block.stages

    inputs = _StageInputs(block, attention, config.hidden_size)
    for part in batches(hidden):
        inputs.update(block.attention_input(part))
    yield inputs.finished()

    inputs = _StageInputs(block, projection, config.num_heads * config.head_dim)
    contexts = []
    for part in batches(hidden):
        contexts.append(block.attention(block.attention_input(part)))
        inputs.update(contexts[-1])
    yield inputs.finished()

    inputs = _StageInputs(block, expansion, config.hidden_size)
    for part, context in zip(batches(hidden), contexts, strict=True):
        part[...] = block.attention_output(part, context)
        _require_range(f"{block.name}.{projection[0]}", part)
        inputs.update(block.mlp_input(part))
    yield inputs.finished()

    inputs = _StageInputs(block, contraction, config.intermediate_size)
    hold = hidden[..., 0].size * config.intermediate_size <= HELD_ELEMENTS
    held = []
    for part in batches(hidden):
        activation = block.mlp(block.mlp_input(part))
        inputs.update(activation)
        if hold:
            held.append(activation)
    yield inputs.finished()

    for index, part in enumerate(batches(hidden)):
        activation = held[index] if hold else block.mlp(block.mlp_input(part))
        part[...] = block.mlp_output(part, activation)
        _require_range(f"{block.name}.{contraction[0]}", part)


def _require_range(layer: str, hidden: NDArray[np.float32]) -> None:
    """Check that hidden states [..., hidden] can be normalized, once a layer has added to them."""
    _, largest = channel_magnitudes(rows_of(hidden))
    reached = float(to_host(largest).max())
    if not reached <= LARGEST_HIDDEN:
        raise ValueError(
            f"{layer}: hidden states reach {reached:g} after it, beyond the {LARGEST_HIDDEN:g} whose "
            "squares float32 can sum"
        )


class _StageInputs:
    """Statistics of a stage's inputs under way; what is not finite is named by its layer.

    Weights and embeddings are known to be finite, so that it is activations that left float32.
    """

    def __init__(self, block: DecoderBlock, stage: Stage, channels: int) -> None:
        self._name = f"{block.name}.{stage[0]}"
        self._stage = stage
        self._statistics = InputStatistics(channels)

    def update(self, inputs: NDArray[np.float32]) -> None:
        """See `InputStatistics.update`."""
        try:
            self._statistics.update(inputs)
        except ValueError as error:
            raise ValueError(f"{self._name}: {error}: activations overflow float32") from None

    def finished(self) -> tuple[Stage, InputStatistics]:
        """The stage with the statistics of all its inputs."""
        require_finite(f"{self._name}: mean of squared inputs", self._statistics.hessian)
        return self._stage, self._statistics


def batches(hidden: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Runs of whole sequences of [S, T, hidden], about `BATCH_TOKENS` tokens each."""
    step = max(1, BATCH_TOKENS // hidden.shape[1])
    for start in range(0, len(hidden), step):
        yield hidden[start : start + step]


def _file_name(index: int) -> str:
    return f"block-{index:04d}.safetensors"
