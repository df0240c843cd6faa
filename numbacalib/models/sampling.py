"""Texts that a model writes itself, token by token from its own predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.block import DecoderBlock
from numbacalib.models.decoder import Decoder
from numbacalib.models.layer_tensors import EMBEDDINGS, linear_shapes
from numbacalib.models.parts import Parts
from numbacalib.ops import sampling
from numbacalib.ops.matrix import column_range

__all__ = ["Blocks", "next_tokens"]


def next_tokens(
    decoder: Decoder, blocks: Iterable[DecoderBlock], tokens: NDArray[np.integer], seed: int
) -> NDArray[np.int32]:
    """Draw the token after each sequence from the model's prediction, at temperature 1.

    The whole sequences run through the model again for each token: that suits short ones, on every
    architecture.

    Parameters
    ----------
    decoder : Decoder
    blocks : iterable of DecoderBlock
        All blocks, in order.
    tokens : integer array [S, T]
    seed : int
        Another one gives other draws.

    Returns
    -------
    int32 [S]
    """
    hidden = decoder.embed(tokens)
    parts = Parts(decoder.batches(hidden))
    for block in blocks:
        block.forward_parts(parts)
    sequences, length, size = hidden.shape
    last = column_range(
        hidden.reshape(sequences, length * size), (length - 1) * size, length * size
    )
    state = sampling.new_state(sequences, last)
    for start, first, scores in decoder.score_tiles(last):
        sampling.add_scores(scores, start, first, seed, state)
    return sampling.drawn(state)


class Blocks:
    """All blocks of a model in order, to iterate over again and again.

    They are read once if their weights take at most `held_bytes`, else anew in each iteration, as experts
    always are.
    """

    def __init__(self, decoder: Decoder, held_bytes: int) -> None:
        self._decoder = decoder
        self._held: list[DecoderBlock] | None = None
        if weights_bytes(decoder) <= held_bytes:
            self._held = list(self._read())

    def __iter__(self) -> Iterator[DecoderBlock]:
        return self._read() if self._held is None else iter(self._held)

    def _read(self) -> Iterator[DecoderBlock]:
        return map(self._decoder.block, range(self._decoder.config.num_layers))


def weights_bytes(decoder: Decoder) -> int:
    """Bytes of the weights of all blocks where the model runs, without experts."""
    stored = decoder.checkpoint.info(EMBEDDINGS).dtype
    weights = sum(
        math.prod(shape)
        for index in range(decoder.config.num_layers)
        for shape in linear_shapes(decoder.config, index).values()
    )
    return weights * decoder.place.product_dtype(stored).itemsize
