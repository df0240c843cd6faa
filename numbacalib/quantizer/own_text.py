"""Calibration sequences that the model writes itself, beside those of the text.

A calibration text is of one kind, and a model quantized on it loses more on others. What the model itself
writes from any beginning is of all kinds that it knows (Liu et al. (2023), arXiv 2305.17888; Williams et
al. (2024), arXiv 2410.17170). Short pieces do as well as long ones, and cost less.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.models import Decoder
from numbacalib.models.sampling import Held, HeldWeights, Room, Writer, held_within
from numbacalib.models.text_encoder import TextEncoder
from numbacalib.quantizer.memory import Demand
from numbacalib.quantizer.progress import Progress
from numbacalib.quantizer.text import evenly_spaced

PIECE = 16
"""Tokens of a piece: the first is one of the text's, the others are drawn by the model. Pieces of 8 leave
more divergence on other kinds of text, those of 64 hardly less."""
MOST = 1 << 14
"""Most tokens that are written; they are repeated where more are asked for."""

log = logging.getLogger("numbacalib")


def own_sequences(share: float | None, samples: int) -> int:
    """Return how many of `samples` sequences the model writes itself; at least one is of the text."""
    return min(int((share or 0) * samples), samples - 1)


def own_text_of(
    tokens: NDArray[np.int32], count: int, demand: Demand, *, streamed: bool = False
) -> OwnText:
    """Return `count` sequences to write beside a text's, in the memory that a run takes later."""
    samples, length = tokens.shape
    room = demand.writing_room((samples + count) * length, streamed=streamed)
    return OwnText(tokens, count, room)


@dataclass(frozen=True)
class OwnText:
    """Sequences that a model is to write beside those of a text.

    Attributes
    ----------
    tokens : int32 [S, T]
        The text's.
    count : int
        Sequences to write.
    room : Room
        Memory where the model runs.
    """

    tokens: NDArray[np.int32]
    count: int
    room: Room

    def added(self, decoder: Decoder) -> NDArray[np.int32]:
        """Return all sequences, int32 [S + count, T]: the model's evenly between those of the text."""
        if not self.count:
            return self.tokens
        begin = time.perf_counter()
        own = self._written(decoder)
        decoder.place.give_back()
        taken = time.perf_counter() - begin
        log.info("own text: %d tokens written in %.1f s", min(own.size, MOST), taken)
        result = np.empty((len(self.tokens) + self.count, self.tokens.shape[1]), np.int32)
        here = np.zeros(len(result), bool)
        here[evenly_spaced(len(result), self.count)] = True
        result[here], result[~here] = own, self.tokens
        return result

    def work(self, decoder: Decoder) -> WritingWork:
        """Return what takes the time of `added`."""
        pieces = self._pieces(decoder)
        held = self._held(decoder, pieces)
        drawn = pieces.number * (pieces.length - 1)
        # without keys a piece runs again for each of its tokens
        passed = drawn if held.keys else drawn * pieces.length // 2
        others = decoder.config.num_layers - held.blocks
        parts = -(-pieces.number // held.sequences)
        return WritingWork(drawn, passed, held.blocks + parts * others * (pieces.length - 1))

    def _pieces(self, decoder: Decoder) -> _Pieces:
        prefix = _prefix(decoder)
        length = self.tokens.shape[1] - len(prefix)
        piece = min(PIECE, length)
        return _Pieces(prefix, piece, math.ceil(min(self.count * length, MOST) / piece))

    def _held(self, decoder: Decoder, pieces: _Pieces) -> Held:
        before = len(pieces.prefix)
        lengths = before + 1, before + pieces.length
        return held_within(decoder, pieces.number, *lengths, self.room)

    def _written(self, decoder: Decoder) -> NDArray[np.int32]:
        """Sequences of pieces, ``[count, T]``, with the special tokens that begin the text's."""
        pieces = self._pieces(decoder)
        prefix, steps = pieces.prefix, range(1, pieces.length)
        known = np.unique(self.tokens[:, len(prefix) :])
        firsts = np.random.default_rng(0).choice(known, pieces.number)
        begun = np.array([[*prefix, first] for first in firsts], np.int32)
        held = self._held(decoder, pieces)
        weights = HeldWeights(decoder, held)
        starts = range(0, len(begun), held.sequences)
        with Progress(len(starts) * len(steps)) as progress:

            def written(start: int) -> NDArray[np.int32]:
                part = begun[start : start + held.sequences]
                writer = Writer(weights, part, start)
                for seed in steps:
                    progress.show(f"writing own text, token {seed + 1} of {pieces.length}")
                    writer.step(seed)
                    progress.step()
                return writer.tokens[:, len(prefix) :]

            parts = [written(start) for start in starts]
        own = np.resize(np.concatenate(parts), (self.count, self.tokens.shape[1] - len(prefix)))
        return np.concatenate([np.tile(begun[:1, :-1], (self.count, 1)), own], axis=1)


class WritingWork(NamedTuple):
    """Counts of what takes the time of writing sequences."""

    drawn: int
    """Tokens that are drawn from the model's predictions."""
    passed: int
    """Tokens that run through all blocks."""
    read: int
    """Blocks that are read."""


class _Pieces(NamedTuple):
    """Pieces that a model writes."""

    prefix: list[int]
    """Special tokens before each."""
    length: int
    """Tokens of each."""
    number: int


def _prefix(decoder: Decoder) -> list[int]:
    """Special tokens that the tokenizer puts before a text."""
    encoder = TextEncoder(decoder.checkpoint)
    list(encoder.pieces(["text"]))
    return encoder.prefix
