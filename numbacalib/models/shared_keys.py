"""Attention to the keys and values of an earlier block, which lends them: both go along with the states."""

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
    """Contexts, and what later blocks attend to."""

    contexts: Array
    keys: Array
    values: Array


class LendingAttention(Attention):
    """Attention whose keys and values later blocks use, too."""

    def __init__(self, weights: BlockWeights, index: int, rope: RotaryEmbedding | None) -> None:
        super().__init__(weights, index, rope)
        self._columns = lent_columns(self._config, index)

    def inner(self, x: Array) -> _Lent:
        """Attend, and keep keys and values as they are attended to."""
        queries, keys, values, gates = self._turned(x)
        return _Lent(self._contexts(x, queries, keys, values, gates), keys, values)

    def exits(self, inner: _Lent) -> list[Array]:
        return [inner.contexts]

    def add_output(self, hidden: Array, inner: _Lent) -> Array:
        """Project the contexts, add that, and leave keys and values for later."""
        for (begin, _), heads in zip(self._columns, inner[1:], strict=True):
            rows = cast(heads, np.float32).reshape(*hidden.shape[:-1], -1)
            put_columns(hidden, begin, rows)
        return super().add_output(hidden, inner.contexts)


class _Borrowed(NamedTuple):
    """The inputs of a block's queries, and what these attend to."""

    states: Array
    keys: Array
    values: Array


class BorrowingAttention(Attention):
    """Attention to the keys and values of the block that lends them."""

    def __init__(self, weights: BlockWeights, index: int, rope: RotaryEmbedding | None) -> None:
        super().__init__(weights, index, rope)
        source = self._config.key_source(index)
        assert source is not None
        self._columns = lent_columns(self._config, source)

    def input(self, hidden: Array) -> _Borrowed:
        """Normalized states, and keys and values ``[S, T, heads, head_dim]``."""
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
