"""Per-layer embeddings of Gemma 4: a vector of each token that a block adds to its state through a gate.

It is a weighted sum of a table's row and a projection of the token's embedding, and so depends on the token
alone: it is computed once for each token in the texts, and looked up by token id.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.block_weights import Array, BlockWeights
from numbacalib.models.checkpoint import Checkpoint
from numbacalib.models.layer_tensors import (
    EMBEDDINGS,
    LAYER_NORM,
    LAYER_PROJECTION,
    LAYER_TABLE,
    layer_input_stages,
    parts,
)
from numbacalib.models.place import Place
from numbacalib.models.stream import token_column
from numbacalib.models.sublayers import Sublayer
from numbacalib.ops.activation import activate
from numbacalib.ops.linear import linear
from numbacalib.ops.matrix import cast, column_range, scaled, take, to_host, weighted_sum
from numbacalib.ops.rms_norm import rms_norm
from numbacalib.runtime.finite import require_finite

__all__ = ["LayerInput", "LayerTables"]

TILE = 8192
"""Rows of a table that are read at a time."""


class LayerTables:
    """Per-layer embeddings of the tokens seen so far; those of one block are held at a time.

    Parameters
    ----------
    checkpoint : Checkpoint
    place : Place
    """

    def __init__(self, checkpoint: Checkpoint, place: Place) -> None:
        self._checkpoint, self._place = checkpoint, place
        self._tokens = np.empty(0, np.int64)
        self._embeddings: NDArray[Any]
        self._table: Array = None
        self._index = -1

    def know(self, tokens: NDArray[np.int64]) -> None:
        """Read the embeddings of tokens that were not seen before."""
        known = np.union1d(self._tokens, tokens)
        if len(known) > len(self._tokens):
            self._tokens, self._index = known, -1
            self._embeddings = self._rows(EMBEDDINGS, slice(None))

    def rows(self, index: int, tokens: NDArray[np.int64]) -> Array:
        """Return a block's embeddings of tokens ``[n]``, float32 ``[n, layer_input_size]``."""
        self.know(tokens)
        if index != self._index:
            self._table, self._index = self._made(index), index
        return take(self._table, np.searchsorted(self._tokens, tokens), 0)

    def _made(self, index: int) -> Array:
        config = self._checkpoint.config
        size = config.layer_input_size
        run = slice(index * size, (index + 1) * size)
        embeddings = cast(self._place.put(self._embeddings), np.float32)
        projection = self._put(LAYER_PROJECTION, self._checkpoint.tensor(LAYER_PROJECTION)[run])
        factor = config.embedding_scale * config.hidden_size**-0.5
        projected = scaled(linear(embeddings, projection), factor)
        norm = self._put(LAYER_NORM, self._checkpoint.tensor(LAYER_NORM))
        projected = rms_norm(projected, norm, config.rms_norm_eps, np.float32)
        own = self._put(LAYER_TABLE, self._rows(LAYER_TABLE, run))
        half = math.sqrt(0.5)
        return weighted_sum(projected, own, half, half * math.sqrt(size))

    def _put(self, name: str, values: NDArray[Any]) -> Array:
        """Put values of a tensor on the device, as float32, and check that all are finite."""
        here = self._place.put(values, np.float32)
        require_finite(f"{self._checkpoint.path}: {name}", here)
        return here

    def _rows(self, name: str, columns: slice) -> NDArray[Any]:
        """Read these columns of a table's rows for the known tokens."""
        tiles = enumerate(self._checkpoint.tiles(name, TILE))
        found = []
        for number, tile in tiles:
            first, last = np.searchsorted(self._tokens, [number * TILE, (number + 1) * TILE])
            if last > first:
                found.append(tile[self._tokens[first:last] - number * TILE, columns])
        return np.concatenate(found)


class _Input(NamedTuple):
    """Tokens' normalized states and their embeddings for the block."""

    states: Array
    vectors: Array


class LayerInput(Sublayer):
    """Last sublayer of a block: adds a token's per-layer embedding through a gate of its state.

    Parameters
    ----------
    weights : BlockWeights
    index : int
        The block's number.
    """

    role = "layer_input"

    def __init__(self, weights: BlockWeights, index: int) -> None:
        super().__init__(weights)
        self._index = index
        self._parts = parts(self._config, index)
        entry, exit_ = layer_input_stages(self._config, index)
        self.entry_stages, self.exit_stages = (entry,), (exit_,)
        self.width = self._config.layer_input_size

    def input(self, hidden: Array) -> _Input:
        """Return the states and their tokens' embeddings."""
        numbers = to_host(column_range(hidden, *token_column(self._config)))
        tables = self._weights.tables
        assert tables is not None
        vectors = tables.rows(self._index, numbers.ravel().astype(np.int64))
        return _Input(super().input(hidden), vectors.reshape(*hidden.shape[:-1], self.width))

    def entries(self, x: _Input) -> list[Array]:
        return [x.states]

    def inner(self, x: _Input) -> Array:
        """``activation(gate) * vector``, ``[..., T, layer_input_size]``."""
        gates = self._weights.project(self._parts["layer_gate"], x.states)
        return activate(gates, self._config.activation, cast(x.vectors, self._weights.dtype))

    def add_output(self, hidden: Array, inner: Array) -> Array:
        """Project the gated embeddings, and add them."""
        self._add(hidden, self._parts["layer_output"], inner)
        self._scale_block(hidden)
        return hidden
