"""Attention to keys and values that an earlier block lends: both travel in the residual stream."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numbacalib.models.block_weights import Array, BlockWeights
from numbacalib.models.rope import RotaryEmbedding
from numbacalib.models.stream import lent_columns
from numbacalib.models.sublayers import Attention
from numbacalib.ops.matrix import cast, column_range, put_columns
from numbacalib.ops.rotary import rotate

__all__ = ["BorrowingAttention", "LendingAttention"]


class _Lent(NamedTuple):
    """Outputs of attention, and the keys and values for later blocks."""

    contexts: Array
    keys: Array
    values: Array


class LendingAttention(Attention):
    """Attention whose keys and values later blocks also attend to."""

    def __init__(self, weights: BlockWeights, index: int, rope: RotaryEmbedding | None) -> None:
        super().__init__(weights, index, rope)
        self._columns = lent_columns(self._config, index)

    def inner(self, x: Array) -> _Lent:
        """Attend, and keep the normalized and rotated keys and the values."""
        queries, keys, values, gates = self._turned(x)
        return _Lent(self._contexts(x, queries, keys, values, gates), keys, values)

    def exits(self, inner: _Lent) -> list[Array]:
        return [inner.contexts]

    def add_output(self, hidden: Array, inner: _Lent) -> Array:
        """Project and add the outputs of attention, and store keys and values for later blocks."""
        for (begin, _), heads in zip(self._columns, inner[1:], strict=True):
            rows = cast(heads, np.float32).reshape(*hidden.shape[:-1], -1)
            put_columns(hidden, begin, rows)
        return super().add_output(hidden, inner.contexts)


class _Borrowed(NamedTuple):
    """Inputs of a block's queries, and the keys and values they attend to."""

    states: Array
    keys: Array
    values: Array


class BorrowingAttention(Attention):
    """Attention to the keys and values of an earlier block."""

    def __init__(self, weights: BlockWeights, index: int, rope: RotaryEmbedding | None) -> None:
        super().__init__(weights, index, rope)
        source = self._config.key_source(index)
        assert source is not None
        self._columns = lent_columns(self._config, source)

    def input(self, hidden: Array) -> _Borrowed:
        """Return normalized states, and keys and values ``[S, T, heads, head_dim]``."""
        keys, values = (
            self._by_head(cast(column_range(hidden, *run), self._weights.dtype), self._size)
            for run in self._columns
        )
        return _Borrowed(super().input(hidden), keys, values)

    def entries(self, x: _Borrowed) -> list[Array]:
        return [x.states]

    def inner(self, x: _Borrowed) -> Array:
        """Attend: ``[..., T, num_heads * head_dim]``."""
        queries = self._by_head(self._projected("query", x.states), self._size)
        queries = self._weights.norm(self._config.architecture.norms["query"], queries)
        if self._rope is not None:
            tables = self._rope.query_tables(queries.shape[1])
            rotate(queries, *tables, interleaved=self._config.architecture.interleaved)
        return self._contexts(x.states, queries, x.keys, x.values, None)
