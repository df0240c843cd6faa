"""A gated delta net in place of a block's attention: a fixed-size memory of the tokens so far."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from numbacalib.models.block_weights import Array, BlockWeights
from numbacalib.models.sublayers import Mixer
from numbacalib.ops.activation import activate
from numbacalib.ops.causal_convolution import causal_convolution
from numbacalib.ops.delta_rule import delta_rule
from numbacalib.ops.linear import linear
from numbacalib.ops.matrix import cast, column_range, from_host, row_range
from numbacalib.ops.rms_norm import rms_norm
from numbacalib.spec.delta_rule import NORM_EPS

__all__ = ["DeltaAttention"]


class DeltaAttention(Mixer):
    """Linear attention by the gated delta rule (`numbacalib.ops.delta_rule`).

    Queries, keys and values pass a short convolution and a SiLU, queries and keys are scaled to unit
    length, and the output of each value head is normalized and multiplied by the SiLU of its gate.

    Parameters
    ----------
    weights : BlockWeights
    index : int
        The block's number.
    """

    is_cheap = False

    def __init__(self, weights: BlockWeights, index: int) -> None:
        super().__init__(weights, index)
        delta, names = self._config.delta_of(index), self._config.architecture.delta
        assert delta is not None
        assert names is not None
        self._delta, self._names = delta, names
        self.width = delta.values

    def inner(self, x: Array) -> Array:
        """Apply the delta rule: ``[..., T, hidden_size]`` to ``[..., T, value_heads * value_dim]``."""
        delta, vectors = self._delta, self._weights.vectors
        queries, keys, values, gates = self._projected(x)
        queries, keys, values = self._convolved(queries, keys, values)
        rates, decays = self._scores(x)
        found = delta_rule(
            self._unit(queries, delta.key_dim**-0.5),
            self._unit(keys),
            self._by_head(values, delta.value_dim),
            decays,
            rates,
            slopes=vectors[self._names.slopes],
            biases=vectors[self._names.biases],
        )
        weight = vectors[f"{self._names.norm}.weight"]
        found = rms_norm(found, weight, self._config.rms_norm_eps, self._weights.dtype)
        opened = activate(self._by_head(gates, delta.value_dim), "silu", found)
        return opened.reshape(*x.shape[:-1], self.width)

    def _projected(self, x: Array) -> list[Array]:
        """Project to queries, keys, values and gates ``[S, T, ...]``."""
        *_, length, _ = x.shape
        delta = self._delta
        widths = delta.keys, delta.keys, delta.values, delta.values
        if "query_key_value_open" in self._parts:
            ends = np.cumsum([0, *(width // delta.key_heads for width in widths)]).tolist()
            together = self._by_head(self._of_part("query_key_value_open", x), ends[-1])
            found = [column_range(together, *run) for run in pairwise(ends)]
        else:
            found = [self._of_part(role, x) for role in ("query", "key", "value", "open")]
        return [y.reshape(-1, length, width) for y, width in zip(found, widths, strict=True)]

    def _convolved(self, *streams: Array) -> list[Array]:
        """Convolve queries, keys and values over their last positions, and apply a SiLU."""
        delta = self._delta
        taps = self._weights.vectors[f"{self._names.convolution}.weight"].reshape(-1, delta.taps)
        ends = np.cumsum([0, delta.keys, delta.keys, delta.values]).tolist()
        return [
            activate(causal_convolution(stream, row_range(taps, *run)), "silu")
            for stream, run in zip(streams, pairwise(ends), strict=True)
        ]

    def _scores(self, x: Array) -> tuple[Array, Array]:
        """Scores of rates and decays, float32 ``[S, T, value_heads]``."""
        *_, length, size = x.shape
        rows, names = cast(x.reshape(-1, length, size), np.float32), self._names
        vectors, delta = self._weights.vectors, self._delta
        rates = linear(rows, vectors[f"{names.rates}.weight"])
        if names.rates != names.decays:
            return rates, linear(rows, vectors[f"{names.decays}.weight"])
        share = delta.value_heads // delta.key_heads
        both = self._by_head(rates, 2 * share)
        first, second = column_range(both, 0, share), column_range(both, share, 2 * share)
        return tuple(y.reshape(-1, length, delta.value_heads) for y in (first, second))

    def _unit(self, y: Array, scale: float = 1.0) -> Array:
        """Scale query or key heads to a length of `scale`, float32."""
        size = self._delta.key_dim
        weight = from_host(np.full(size, scale * size**-0.5, np.float32), y)
        return rms_norm(self._by_head(y, size), weight, NORM_EPS / size, np.float32)

    def _of_part(self, role: str, x: Array) -> Array:
        return self._weights.project(self._parts[role], x)

    def _by_head(self, y: Array, size: int) -> Array:
        """Reshape vectors ``[..., T, heads * size]`` to ``[S, T, heads, size]``."""
        *_, length, width = y.shape
        return y.reshape(-1, length, width // size, size)
