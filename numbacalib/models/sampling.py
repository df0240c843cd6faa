"""Texts that a model writes itself, token by token from its own predictions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.block import DecoderBlock, holds_keys
from numbacalib.models.decoder import Decoder
from numbacalib.models.key_values import KeyValues
from numbacalib.models.layer_tensors import EMBEDDINGS, linear_shapes
from numbacalib.models.parts import Parts
from numbacalib.ops import sampling
from numbacalib.ops.matrix import column_range

__all__ = ["Held", "HeldWeights", "Room", "Writer", "held_within"]

Array = NDArray[np.integer]


MOST_PARTS = 4
"""Most parts in which sequences are written. With seven SmolLM2's text took longer than without keys."""


class HeldWeights:
    """A model, of which some weights are held while sequences are written; the others are read again.

    Parameters
    ----------
    decoder : Decoder
    held : Held
    """

    def __init__(self, decoder: Decoder, held: Held) -> None:
        self.decoder = decoder
        self.held = held
        self._blocks = [decoder.block(index) for index in range(held.blocks)]
        self._head = list(decoder.head_tiles()) if held.head else None

    def blocks(self) -> Iterator[DecoderBlock]:
        """Yield all blocks in order."""
        yield from self._blocks
        for index in range(len(self._blocks), self.decoder.config.num_layers):
            yield self.decoder.block(index)

    def score_tiles(self, hidden: Any) -> Iterator[tuple[int, int, Any]]:
        """See `Decoder.score_tiles`."""
        return self.decoder.score_tiles(hidden, self._head)


class Writer:
    """Sequences that grow by tokens drawn from the model's predictions, at temperature 1.

    Without held keys, as in models whose tokens meet elsewhere than in attention, all tokens run through
    the model again for each new one: that suits short sequences, on every architecture.

    Parameters
    ----------
    weights : HeldWeights
    tokens : integer array [S, T]
        The sequences' beginnings.
    first : int, default 0
        Number of the first sequence among all that are written: draws of each are its own.
    """

    def __init__(self, weights: HeldWeights, tokens: Array, first: int = 0) -> None:
        self._weights = weights
        self._decoder = weights.decoder
        self._first = first
        self.tokens = np.asarray(tokens, np.int32)
        blocks = range(self._decoder.config.num_layers)
        self._before = [KeyValues() for _ in blocks] if weights.held.keys else []

    def step(self, seed: int) -> None:
        """Append a token to each sequence; another seed gives other draws."""
        last = self._last_states()
        state = sampling.new_state(self._first + len(last), last)  # rows are numbers of sequences
        for start, first, scores in self._weights.score_tiles(last):
            sampling.add_scores(scores, self._first + start, first, seed, state)
        drawn = sampling.drawn(state)[self._first :]
        self.tokens = np.concatenate([self.tokens, drawn[:, None]], axis=1)

    def _last_states(self) -> NDArray[np.float32]:
        """States ``[S, stream_size]`` of the last tokens after the last block."""
        first = self._before[0].length if self._before else 0
        hidden = self._decoder.embed(self.tokens[:, first:], first)
        if self._before:
            for block, before in zip(self._weights.blocks(), self._before, strict=True):
                block.forward(hidden, before)
        else:
            parts = Parts(self._decoder.batches(hidden))
            for block in self._weights.blocks():
                block.forward_parts(parts)
        sequences, length, size = hidden.shape
        rows = hidden.reshape(sequences, length * size)
        return column_range(rows, (length - 1) * size, length * size)


class Held(NamedTuple):
    """State that is kept in memory while sequences are written."""

    sequences: int
    """Number of sequences that are written together."""
    keys: bool
    """True if their keys and values are held."""
    head: bool
    """True if the head is held."""
    blocks: int
    """Number of blocks whose weights are held, the first ones."""


class Room(NamedTuple):
    """Memory for writing, where the model runs, and what takes it: bytes."""

    total: int
    token: int = 0
    """Activations of a token that runs through a block."""
    state: int = 0
    """State of a token between blocks."""
    score: int = 0
    """Scores of a token over a tile of the vocabulary."""


def held_within(decoder: Decoder, sequences: int, begun: int, length: int, room: Room) -> Held:
    """Return what to hold for sequences of `begun` tokens that reach a length.

    Keys and values come first: without them all tokens run again for each new one. Sequences may be written
    in parts whose keys and values leave room for weights, but each part reads again what is not held.
    """
    config, place = decoder.config, decoder.place
    blocks = range(config.num_layers)
    # with keys, all tokens that a sequence begins with run at once, and then one by one
    each = length * _keys_bytes(decoder) + begun * (room.token + room.state)
    can_hold = all(holds_keys(config, index) for index in blocks)
    weights = [_weights_bytes(decoder, index) for index in blocks]
    head = config.vocab_size * config.hidden_size * _itemsize(decoder)
    ways = {}
    for parts in range(1, MOST_PARTS + 1) if can_hold else ():
        together = math.ceil(sequences / parts)
        free = room.total - room.score * min(together, place.score_rows) - together * each
        if free >= 0:
            has_head, count, left_out = _fitting(head, weights, free)
            ways[parts * left_out, parts] = Held(together, True, has_head, count)
    if ways:
        return ways[min(ways)]
    tokens = sequences * length
    running = tokens * room.state + min(tokens, place.batch_tokens) * room.token
    free = room.total - room.score * min(sequences, place.score_rows) - running
    has_head, count, _ = _fitting(head, weights, free)
    return Held(sequences, False, has_head, count)


def _fitting(head: int, weights: list[int], free: int) -> tuple[bool, int, int]:
    """Return whether the head fits, how many blocks do beside it, and the bytes that do not.

    The head comes first, since it is not read ahead.
    """
    has_head = head <= free
    free -= head * has_head
    whole = sum(weights)
    if whole > free:
        free -= max(weights)  # of the block that is read
    held = [taken for taken in accumulate(weights) if taken <= free]
    return has_head, len(held), whole - max(held, default=0) + head * (not has_head)


def _weights_bytes(decoder: Decoder, index: int) -> int:
    """Bytes of a block's weights, without experts, which are read whenever they run."""
    shapes = linear_shapes(decoder.config, index).values()
    return sum(map(math.prod, shapes)) * _itemsize(decoder)


def _keys_bytes(decoder: Decoder) -> int:
    """Bytes of a token's keys and values in all blocks, at most, and of its attention in one.

    There its keys and values are copied, and it has a query and a context, though it may need none.
    """
    config = decoder.config
    blocks = range(config.num_layers)
    keys = [2 * count * size for count, size in map(config.heads_of, blocks)]
    queries = [2 * config.queries_of(index) * config.heads_of(index)[1] for index in blocks]
    return (sum(keys) + max(map(sum, zip(keys, queries, strict=True)))) * _itemsize(decoder)


def _itemsize(decoder: Decoder) -> int:
    stored = decoder.checkpoint.info(EMBEDDINGS).dtype
    return decoder.place.product_dtype(stored).itemsize
