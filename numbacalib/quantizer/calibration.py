"""Inputs of a model's linear layers: statistics of a text run through it, or from files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from numbacalib.methods import ExpertInputs
from numbacalib.models import Checkpoint, Decoder, DecoderBlock
from numbacalib.models.experts import Experts
from numbacalib.models.layer_tensors import Stage, stages
from numbacalib.models.parts import Parts
from numbacalib.ops.matrix import copied
from numbacalib.quantizer.expert_calibration import expert_groups
from numbacalib.quantizer.fingerprint import require_same_model
from numbacalib.quantizer.settings import PAIRED_TOKENS
from numbacalib.quantizer.stages import require_range, run_stages
from numbacalib.quantizer.work import block_file
from numbacalib.runtime.finite import require_finite
from numbacalib.statistics import InputStatistics, load_statistics, stored_channels

SILENT: dict[str, Any] = {"over": "ignore", "invalid": "ignore"}
"""Arguments of `np.errstate` around checked code: its errors name the layer, NumPy's warnings do not."""

log = logging.getLogger("numbacalib")

Group = Sequence[tuple[Stage, InputStatistics | ExpertInputs | None]]
"""Stages whose layers are equal, with the statistics of their inputs; None without a calibration."""


class Calibration(Protocol):
    """Source of the statistics of blocks' inputs; blocks are requested in order."""

    def preview(self, index: int, block: DecoderBlock) -> Sequence[tuple[Stage, InputStatistics]]:
        """Statistics of all stages of the block before it changes, except experts."""

    def stages(
        self, index: int, block: DecoderBlock, folded: Mapping[Stage, NDArray]
    ) -> Iterable[Group]:
        """Yield statistics stage by stage, while the caller replaces each stage's weights.

        Equal stages of several experts come together, others singly.

        `folded` holds the channel scales by which inputs are divided since the preview.
        """

    def skip(self, block: DecoderBlock, original: DecoderBlock) -> None:
        """Move past a block that is already quantized; `original` is the block before quantization."""


class TextCalibration:
    """A text that runs through the model while its blocks are quantized.

    Each stage sees what the quantized layers before it produce.

    Parameters
    ----------
    decoder : Decoder
    tokens : integer array [S, T]
    everything : bool, default False
        Compute each expert's statistics from all tokens, not only from those routed to it.
    propagated : bool, default False
        Run the original blocks beside the quantized ones, for statistics that also cover the original
        model's inputs; of a longer text only the first `PAIRED_TOKENS`. For these, running the text takes
        twice the time and the moments three times, with memory for a second residual stream, block and a
        stage's activations.
    streamed : bool, default False
        Keep the residual stream in pinned host memory and stream it through the device.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokens: NDArray[np.integer],
        *,
        everything: bool = False,
        propagated: bool = False,
        streamed: bool = False,
    ) -> None:
        self._decoder = decoder
        self._everything, self._propagated = everything, propagated
        self.streamed = streamed
        self._begin(tokens)
        if self._original is not None:
            log.info(
                "target propagated: %d of %d tokens run through the original blocks too, with %.0f MiB of "
                "a second residual stream and as much again of activations",
                self._original.tokens,
                tokens.size,
                4 * self._original.tokens * decoder.stream_size / 2**20,
            )

    def _begin(self, tokens: NDArray[np.integer]) -> None:
        """Set the states to the embeddings of tokens."""
        self._hidden = self._decoder.states(tokens, streamed=self.streamed)
        paired = self._hidden.first(PAIRED_TOKENS) if self._propagated else None
        self._original = None if paired is None else paired.copied()

    def restart(self, tokens: Callable[[], NDArray[np.integer]]) -> None:
        """Begin again with other tokens, which are made when the states of the first are gone."""
        self._hidden, self._original = Parts(), None
        self._begin(tokens())

    def preview(self, index: int, block: DecoderBlock) -> list[tuple[Stage, InputStatistics]]:
        """See `Calibration`."""
        del index
        return list(run_stages(block, self._decoder, self._hidden.copied()))

    def stages(
        self, index: int, block: DecoderBlock, folded: Mapping[Stage, NDArray]
    ) -> Iterator[Group]:
        """See `Calibration`; folded scales already show in the inputs."""
        del index, folded
        # a copy of the folded block: both see the same scaled channels
        original = None if self._original is None else (block.copied(), self._original)
        for found in run_stages(block, self._decoder, self._hidden, original):
            yield [found]
        yield from self._expert_groups(block, self._hidden)

    def _expert_groups(self, block: DecoderBlock, parts: Parts) -> Iterator[Group]:
        """Yield the statistics of a block's experts, if any, and add the experts' outputs to the states."""
        if isinstance(block.mlp, Experts):
            held_bytes = self._decoder.place.held_bytes
            yield from expert_groups(block, parts, self._everything, held_bytes)
            for part in parts:
                require_range(f"{block.name}.{block.mlp.stages[-1][1][0]}", part)

    def head(self) -> InputStatistics:
        """Statistics of the head's inputs, once the text has run through all blocks."""
        found = InputStatistics(self._decoder.config.hidden_size)
        originals = iter(()) if self._original is None else iter(self._original)
        rest = InputStatistics(self._decoder.config.hidden_size)
        for part in self._hidden:
            parts = [part, *islice(originals, 1)]
            own = found if len(parts) == 2 else rest
            own.update(*map(self._decoder.head_inputs, parts))
        found = found.merge(rest)
        require_finite("the head: mean of squared inputs", found.hessian)
        return found

    @property
    def sequence_length(self) -> int:
        """Tokens of a sequence."""
        return int(self._first_part().shape[1])

    @property
    def trial_sequences(self) -> int:
        """Sequences of a batch."""
        return len(self._first_part())

    def _first_part(self) -> Any:
        return next(iter(self._hidden))

    def trial(self, block: DecoderBlock, sequences: int) -> dict[Stage, Any]:
        """Statistics of the first sequences only, by stage; the residual stream does not advance."""
        first = self._first_part()[:sequences]
        part, original = Parts([copied(first)]), None
        if self._original is not None:
            original = block.copied(), Parts([copied(first)])
        found = dict(run_stages(block, self._decoder, part, original))
        for _ in self._expert_groups(block, part):
            pass
        return found

    def skip(self, block: DecoderBlock, original: DecoderBlock) -> None:
        """See `Calibration`: the same states as after `stages`, without the cost of statistics."""
        block.forward_parts(self._hidden)
        if self._original is not None:
            original.forward_parts(self._original)


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
            for stage in stages(decoder.config, index):
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
        like = block.linears[block.stages[0][0]]
        return [(stage, saved[f"{block.name}.{stage[0]}"].moved(like)) for stage in block.stages]

    def _file(self, index: int) -> Path:
        return block_file(self._directory, index)

    def stages(
        self, index: int, block: DecoderBlock, folded: Mapping[Stage, NDArray]
    ) -> Iterator[Group]:
        """See `Calibration`."""
        for stage, statistics in self.preview(index, block):
            yield [(stage, statistics.divided(folded[stage]) if stage in folded else statistics)]

    def skip(self, block: DecoderBlock, original: DecoderBlock) -> None:
        """See `Calibration`: no block depends on the one before."""
