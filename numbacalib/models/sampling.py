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


class Writer:
    """Sequences that grow by tokens drawn from the model's predictions, at temperature 1.

    Keys and values of attention are held if they fit, and beside them the weights of as many blocks as do;
    the others are read again for each token. In models whose tokens also meet elsewhere all tokens
    run through the model again for each new one: that suits short sequences, on every architecture.

    Parameters
    ----------
    decoder : Decoder
    tokens : integer array [S, T]
        The sequences' beginnings.
    length : int
        Tokens of a sequence in the end.
    held_bytes : int
        Memory, where the model runs, that weights, keys and values may take.
    """

    def __init__(self, decoder: Decoder, tokens: Array, length: int, held_bytes: int) -> None:
        self._decoder = decoder
        self.tokens = np.asarray(tokens, np.int32)
        holds = held_within(decoder, len(tokens) * length, held_bytes)
        blocks = range(decoder.config.num_layers)
        self._before = [KeyValues() for _ in blocks] if holds.keys else []
        self._held = [decoder.block(index) for index in range(holds.blocks)]

    def step(self, seed: int) -> None:
        """Append a token to each sequence; another seed gives other draws."""
        last = self._last_states()
        state = sampling.new_state(len(last), last)
        for start, first, scores in self._decoder.score_tiles(last):
            sampling.add_scores(scores, start, first, seed, state)
        self.tokens = np.concatenate([self.tokens, sampling.drawn(state)[:, None]], axis=1)

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
    """What is held from one token to the next."""

    keys: bool
    blocks: int
    """Number of blocks, the first ones."""


def held_within(decoder: Decoder, tokens: int, held_bytes: int) -> Held:
    """Return what a `Writer` of so many tokens holds in this memory."""
    config = decoder.config
    keys = _keys_bytes(decoder, tokens)
    keys_fit = keys <= held_bytes and all(
        holds_keys(config, index) for index in range(config.num_layers)
    )
    weights = [_weights_bytes(decoder, index) for index in range(config.num_layers)]
    room = held_bytes - keys * keys_fit
    if sum(weights) > room:
        room -= max(weights)  # of the block that is read
    return Held(keys_fit, sum(taken <= room for taken in accumulate(weights)))


def _weights_bytes(decoder: Decoder, index: int) -> int:
    """Bytes of a block's weights, without experts, which are read whenever they run."""
    shapes = linear_shapes(decoder.config, index).values()
    return sum(map(math.prod, shapes)) * _itemsize(decoder)


def _keys_bytes(decoder: Decoder, tokens: int) -> int:
    """Bytes of the keys and values of so many tokens in all blocks, at most."""
    heads = (decoder.config.heads_of(index) for index in range(decoder.config.num_layers))
    return 2 * tokens * sum(count * size for count, size in heads) * _itemsize(decoder)


def _itemsize(decoder: Decoder) -> int:
    stored = decoder.checkpoint.info(EMBEDDINGS).dtype
    return decoder.place.product_dtype(stored).itemsize
