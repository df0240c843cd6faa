"""Multi-head latent attention."""

from __future__ import annotations

from numbacalib.models.block_weights import Array, BlockWeights
from numbacalib.models.latent import NORM_EPS
from numbacalib.models.rope import RotaryEmbedding
from numbacalib.models.sublayers import Attention
from numbacalib.ops.attention import attention
from numbacalib.ops.matrix import (
    column_range,
    joined_columns,
)
from numbacalib.ops.rotary import rotate

__all__ = ["LatentAttention"]


class LatentAttention(Attention):
    """Attention with keys and values from a latent vector of each token, and in some models queries too.

    See `numbacalib.models.latent`. Keys and values of all heads are computed, as in prefill.
    """

    def __init__(self, weights: BlockWeights, index: int, rope: RotaryEmbedding) -> None:
        super().__init__(weights, index, rope)
        latent = self._config.latent
        assert latent is not None
        self._latent, self._rotary = latent, rope
        self._still = self._config.head_dim - self._config.rotary_dim
        self._growing = rope.still(self._still)
        self.width = self._config.num_heads * latent.value_dim

    def middles(self, x: Array) -> list[Array]:
        """Compute the latent vectors of queries, if they have one, and of keys and values."""
        _, latents = self._compressed(x)
        queries = [self._query_input(x)] if self._latent.query_size else []
        return [*queries, latents]

    def inner(self, x: Array) -> Array:
        """Attend: ``[..., T, hidden_size]`` to ``[..., T, num_heads * value_dim]``."""
        config, still = self._config, self._still
        *_, length, _ = x.shape
        queries = self._of_heads("query", self._query_input(x))
        tables = self._rotary.query_tables(length)
        rotate(queries, *tables, interleaved=config.architecture.interleaved, first=still)
        if self._growing is not None:
            rotate(queries, *self._growing.query_tables(length))
        turned, latents = self._compressed(x)
        rotate(turned, *self._rotary.tables(length), interleaved=config.architecture.interleaved)
        expanded = self._of_heads("key_value", latents)
        keys = joined_columns(column_range(expanded, 0, still), turned)
        values = column_range(expanded, still, still + self._latent.value_dim)
        context = attention(queries, keys, values, self._window, scale=config.attention_scale)
        return context.reshape(*x.shape[:-1], self.width)

    def _query_input(self, x: Array) -> Array:
        """Return the input of the query projection."""
        if not self._latent.query_size:
            return x
        return self._normed("query_latent", self._weights.project(self._parts["query_latent"], x))

    def _compressed(self, x: Array) -> tuple[Array, Array]:
        """Compute the rotary part of keys, ``[S, T, 1, rotary_dim]``, and latents ``[..., T, size]``."""
        *_, length, _ = x.shape
        both = self._weights.project(self._parts["latent"], x)
        size, turning = self._latent.size, self._config.rotary_dim
        turned = column_range(both, size, size + turning).reshape(-1, length, 1, turning)
        return turned, self._normed("latent", column_range(both, 0, size))

    def _normed(self, role: str, x: Array) -> Array:
        return self._weights.norm(self._config.architecture.norms[role], x, eps=NORM_EPS)

    def _of_heads(self, role: str, x: Array) -> Array:
        """Compute a layer's outputs as heads ``[S, T, num_heads, ...]``."""
        rows = self._parts[role].rows
        return self._by_head(self._projected(role, x), rows // self._config.num_heads)
