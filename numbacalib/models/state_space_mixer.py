"""A Mamba 2 layer in place of a block's attention."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from numbacalib.models.block_weights import Array, BlockWeights
from numbacalib.models.sublayers import Mixer
from numbacalib.ops.activation import activate
from numbacalib.ops.causal_convolution import causal_convolution
from numbacalib.ops.delta_rule import delta_rule
from numbacalib.ops.matrix import cast, column_range, from_host, scaled, to_host, weighted_sum
from numbacalib.ops.rms_norm import rms_norm

__all__ = ["StateSpaceMixer"]


class StateSpaceMixer(Mixer):
    """Linear attention by a decaying memory (`numbacalib.ops.delta_rule`, without rates).

    Values, keys and queries pass a short convolution and a SiLU; the output of each value head gets a share
    of its own value added, is multiplied by the SiLU of its gate, and is normalized.

    Parameters
    ----------
    weights : BlockWeights
    index : int
        The block's number.
    """

    is_cheap = False

    def __init__(self, weights: BlockWeights, index: int) -> None:
        super().__init__(weights, index)
        space, names = self._config.state_space_of(index), self._config.architecture.state_space
        assert space is not None
        assert names is not None
        self._space, self._names = space, names
        self.width = space.values

    def inner(self, x: Array) -> Array:
        """Apply the recurrence: ``[..., T, hidden_size]`` to ``[..., T, heads * head_dim]``."""
        space, vectors, names = self._space, self._weights.vectors, self._names
        *_, length, _ = x.shape
        together = self._weights.project(self._parts["mixed"], x)
        widths = space.values, space.values + 2 * space.keys, space.heads
        ends = np.cumsum([0, *widths]).tolist()
        gates, mixed, scores = (
            column_range(together, *run).reshape(-1, length, run[1] - run[0])
            for run in pairwise(ends)
        )
        values, keys, queries = self._convolved(mixed)
        found = delta_rule(
            queries,
            keys,
            values,
            cast(scores, np.float32),
            None,
            slopes=vectors[names.slopes],
            biases=vectors[names.biases],
        ).reshape(gates.shape)
        share = from_host(to_host(vectors[names.shares]).repeat(space.head_dim), x)
        own = scaled(values.reshape(gates.shape), share)
        found = weighted_sum(found, own, 1.0, 1.0, dtype=gates.dtype)
        return self._normalized(activate(gates, "silu", found)).reshape(*x.shape[:-1], self.width)

    def _convolved(self, mixed: Array) -> list[Array]:
        """Return values ``[S, T, heads, head_dim]``; keys, queries ``[S, T, groups, key_dim]``, float32."""
        space, vectors, name = self._space, self._weights.vectors, self._names.convolution
        taps = vectors[f"{name}.weight"].reshape(-1, space.taps)
        mixed = activate(causal_convolution(mixed, taps, vectors.get(f"{name}.bias")), "silu")
        sequences, length, _ = mixed.shape
        ends = np.cumsum([0, space.values, space.keys, space.keys]).tolist()
        values, keys, queries = (column_range(mixed, *run) for run in pairwise(ends))
        heads = sequences, length, space.groups, space.key_dim
        return [
            values.reshape(sequences, length, space.heads, space.head_dim),
            cast(keys, np.float32).reshape(heads),
            cast(queries, np.float32).reshape(heads),
        ]

    def _normalized(self, found: Array) -> Array:
        """Normalize outputs by group (RMS), and multiply by the norm's weight."""
        size = self.width // self._space.groups
        ones = from_host(np.ones(size, np.float32), found)
        groups = found.reshape(*found.shape[:-1], self._space.groups, size)
        unit = rms_norm(groups, ones, self._config.rms_norm_eps).reshape(found.shape)
        weight = self._weights.vectors[f"{self._names.norm}.weight"]
        return cast(scaled(unit, weight), self._weights.dtype)
