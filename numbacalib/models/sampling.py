"""Texts that a model writes itself, token by token from its own predictions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.block import DecoderBlock, holds_keys
from numbacalib.models.decoder import Decoder
from numbacalib.models.key_values import KeyValues
from numbacalib.models.layer_tensors import EMBEDDINGS, linear_shapes
from numbacalib.models.parts import Parts
from numbacalib.ops import sampling
from numbacalib.ops.matrix import column_range

__all__ = ["Held", "Writer", "held_within"]

Array = NDArray[np.integer]


MOST_PARTS = 4
"""Most parts in which sequences are written. With seven SmolLM2's text took longer than without keys."""


class Writer:
    """Sequences that grow by tokens drawn from the model's predictions, at temperature 1.

    Without held keys, as in models whose tokens meet elsewhere than in attention, all tokens run through
    the model again for each new one: that suits short sequences, on every architecture.

    Parameters
    ----------
    decoder : Decoder
    tokens : integer array [S, T]
        The sequences' beginnings.
    held : Held
        What is kept from one token to the next; the weights of other blocks are read again.
    first : int, default 0
        Number of the first sequence among all that are written: draws of each are its own.
    """

    def __init__(self, decoder: Decoder, tokens: Array, held: Held, first: int = 0) -> None:
        self._decoder = decoder
        self._first = first
        self.tokens = np.asarray(tokens, np.int32)
        blocks = range(decoder.config.num_layers)
        self._before = [KeyValues() for _ in blocks] if held.keys else []
        self._held = [decoder.block(index) for index in blocks[: held.blocks]]

    def step(self, seed: int) -> None:
        """Append a token to each sequence; another seed gives other draws."""
        last = self._last_states()
        state = sampling.new_state(self._first + len(last), last)  # rows are numbers of sequences
        for start, first, scores in self._decoder.score_tiles(last):
            sampling.add_scores(scores, self._first + start, first, seed, state)
        drawn = sampling.drawn(state)[self._first :]
        self.tokens = np.concatenate([self.tokens, drawn[:, None]], axis=1)

    def _last_states(self) -> NDArray[np.float32]:
        """States ``[S, stream_size]`` of the last tokens after the last block."""
        first = self._before[0].length if self._before else 0
        hidden = self._decoder.embed(self.tokens[:, first:], first)
        if self._before:
            for block, before in zip(self._blocks(), self._before, strict=True):
                block.forward(hidden, before)
        else:
            parts = Parts(self._decoder.batches(hidden))
            for block in self._blocks():
                block.forward_parts(parts)
        sequences, length, size = hidden.shape
        rows = hidden.reshape(sequences, length * size)
        return column_range(rows, (length - 1) * size, length * size)

    def _blocks(self) -> Iterator[DecoderBlock]:
        yield from self._held
        for index in range(len(self._held), self._decoder.config.num_layers):
            yield self._decoder.block(index)


class Held(NamedTuple):
    """State that is kept in memory while sequences are written."""

    sequences: int
    """Number of sequences that are written together."""
    keys: bool
    """True if their keys and values are held."""
    blocks: int
    """Number of blocks whose weights are held, the first ones."""


def held_within(decoder: Decoder, sequences: int, length: int, held_bytes: int) -> Held:
    """Return what to hold in this memory for sequences that reach a length.

    Keys and values come first. If those of all sequences do not fit, fewer are written together, up to as
    many parts as cost less: each reads the weights again, while without keys all tokens run again.
    """
    config = decoder.config
    blocks = range(config.num_layers)
    keys = length * _keys_bytes(decoder)
    can_hold = all(holds_keys(config, index) for index in blocks)
    together = min(sequences, held_bytes // keys) if can_hold else 0
    has_keys = together * MOST_PARTS >= sequences
    parts = math.ceil(sequences / together) if has_keys else 1
    together = math.ceil(sequences / parts)
    weights = [_weights_bytes(decoder, index) for index in blocks]
    room = held_bytes - (together * keys if has_keys else 0)
    if sum(weights) > room:
        room -= max(weights)  # of the block that is read
    return Held(together, has_keys, sum(taken <= room for taken in accumulate(weights)))


def _weights_bytes(decoder: Decoder, index: int) -> int:
    """Bytes of a block's weights, without experts, which are read whenever they run."""
    shapes = linear_shapes(decoder.config, index).values()
    return sum(map(math.prod, shapes)) * _itemsize(decoder)


def _keys_bytes(decoder: Decoder) -> int:
    """Bytes of a token's keys and values in all blocks, at most."""
    heads = (decoder.config.heads_of(index) for index in range(decoder.config.num_layers))
    return 2 * sum(count * size for count, size in heads) * _itemsize(decoder)


def _itemsize(decoder: Decoder) -> int:
    stored = decoder.checkpoint.info(EMBEDDINGS).dtype
    return decoder.place.product_dtype(stored).itemsize
