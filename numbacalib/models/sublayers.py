"""The halves of a decoder block: attention and MLP, each of which adds to the residual stream.

Both are cut where the inputs of linear layers appear, so that a quantizer sees these and replaces weights
before what follows runs:

- `input`: what comes from the residual stream, normalized: the input of its entry layers;
- `inner`: from there to the inputs of its exit layers;
- `add_output`: through the exit layers, into the residual stream.

A sublayer may have several stages at either end, as experts have: `entries` and `exits` give an array for
each of `entry_stages` and `exit_stages`.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import numpy as np

from numbacalib.models.block_weights import Array, BlockWeights
from numbacalib.models.layer_tensors import Part, Stage, parts, stages
from numbacalib.models.parts import Parts
from numbacalib.models.rope import RotaryEmbedding
from numbacalib.ops.activation import activate
from numbacalib.ops.attention import attention
from numbacalib.ops.matrix import add_scaled, cast
from numbacalib.ops.rotary import rotate

__all__ = ["MLP", "Attention", "Sublayer", "activated"]


class Sublayer(abc.ABC):
    """Half a block.

    Attributes
    ----------
    entry_stages, exit_stages : tuple of tuple of str
        Linear layers that share an input, at either end.
    width : int
        Numbers of a token that `inner` gives.
    is_cheap : bool
        Whether `inner` takes so little time that it may be computed twice instead of held.
    """

    entry_stages: tuple[Stage, ...]
    exit_stages: tuple[Stage, ...]
    width: int
    is_cheap = True
    role: str

    def __init__(self, weights: BlockWeights) -> None:
        self._weights = weights
        self._config = weights.config
        norms = self._config.architecture.norms
        self._input_norm = norms.get(self.role)
        if self._input_norm is None and self._config.architecture.parallel:
            self._input_norm = norms["attention"]
        self._output_norm = norms.get(f"{self.role}_output")

    @property
    def residual_factor(self) -> float | None:
        """Factor of the exit layers' sums on their way into the residual stream.

        None where a norm lies between.
        """
        return None if self._output_norm else self._config.residual_scale

    def input(self, hidden: Array) -> Array:
        """Normalized ``hidden`` ``[..., T, hidden_size]``, or as it is where there is no norm."""
        if self._input_norm is None:
            return cast(hidden, self._weights.dtype)
        return self._weights.norm(self._input_norm, hidden)

    def entries(self, x: Array) -> list[Array]:
        """The inputs of the entry stages, from what `input` gave."""
        return [x]

    @abc.abstractmethod
    def inner(self, x: Array) -> Any:
        """Compute what `exits` and `add_output` take from what `input` gave, ``[..., T, hidden_size]``."""

    def exits(self, inner: Any) -> list[Array]:
        """The inputs of the exit stages."""
        return [inner]

    @abc.abstractmethod
    def add_output(self, hidden: Array, inner: Any) -> Array:
        """Add to ``hidden`` ``[..., T, hidden_size]`` in place, and return it."""

    def forward(self, hidden: Array) -> Array:
        """Run it on ``hidden``, in place, and return that."""
        return self.add_output(hidden, self.inner(self.input(hidden)))

    def forward_parts(self, parts: Parts) -> None:
        """Run it on each part of the tokens, in place."""
        for part in parts.changed():
            self.forward(part)

    def _add(self, hidden: Array, part: Any, x: Array) -> Array:
        """Add a linear layer's sums, normalized and scaled as the architecture does."""
        factor = self._config.residual_scale
        if self._output_norm is None and factor == 1:
            return self._weights.project(part, x, add_to=hidden)
        output = self._weights.project(part, x, dtype=np.float32)
        if self._output_norm is not None:
            output = self._weights.norm(self._output_norm, output, np.float32)
        add_scaled(hidden, output, factor)
        return hidden


class Attention(Sublayer):
    """Attention of each token to those before it in its sequence.

    Parameters
    ----------
    weights : BlockWeights
    index : int
        The block's number.
    rope : RotaryEmbedding or None
    """

    role = "attention"
    is_cheap = False

    def __init__(self, weights: BlockWeights, index: int, rope: RotaryEmbedding | None) -> None:
        super().__init__(weights)
        config = self._config
        self._rope = rope
        self._window = config.sliding_windows[index]
        self._parts = parts(config, index)
        entry, exit_, *_ = stages(config, index)
        self.entry_stages, self.exit_stages = (entry,), (exit_,)
        self.width = config.num_heads * config.head_dim

    def inner(self, x: Array) -> Array:
        """Attend: ``[..., T, hidden_size]`` to ``[..., T, num_heads * head_dim]``."""
        config = self._config
        *_, length, _ = x.shape
        queries, keys, values = (
            self._weights.project(self._parts[role], x) for role in ("query", "key", "value")
        )
        if config.qk_norm and config.architecture.qk_norm == "all":
            queries, keys = self._normalized(queries, keys)
        queries, keys, values = (
            array.reshape(-1, length, count, config.head_dim)
            for array, count in (
                (queries, config.num_heads),
                (keys, config.num_kv_heads),
                (values, config.num_kv_heads),
            )
        )
        by_head = config.qk_norm and config.architecture.qk_norm != "all"
        if by_head and not config.architecture.norm_after_rotary:
            queries, keys = self._normalized(queries, keys)
        if self._rope is not None:
            interleaved = config.architecture.interleaved
            rotate(queries, *self._rope.query_tables(length), interleaved=interleaved)
            rotate(keys, *self._rope.tables(length), interleaved=interleaved)
        if by_head and config.architecture.norm_after_rotary:
            queries, keys = self._normalized(queries, keys)
        context = attention(
            queries,
            keys,
            values,
            self._window,
            scale=config.attention_scale,
            cap=config.attention_cap,
        )
        return context.reshape(*x.shape[:-1], self.width)

    def add_output(self, hidden: Array, inner: Array) -> Array:
        """Project the contexts, and add that."""
        return self._add(hidden, self._parts["output"], inner)

    def _normalized(self, queries: Array, keys: Array) -> tuple[Array, Array]:
        norms = self._config.architecture.norms
        return self._weights.norm(norms["query"], queries), self._weights.norm(norms["key"], keys)


class MLP(Sublayer):
    """Two linear layers with an activation between them, gated or not."""

    role = "mlp"

    def __init__(self, weights: BlockWeights, index: int) -> None:
        super().__init__(weights)
        self._parts = parts(self._config, index)
        *_, entry, exit_ = stages(self._config, index)
        self.entry_stages, self.exit_stages = (entry,), (exit_,)
        up = self._parts["up"]
        self.width = up.end - up.begin

    def inner(self, x: Array) -> Array:
        """``activation(gate) * up``, or ``activation(up)``, ``[..., T, intermediate_size]``."""
        return activated(self._weights, self._parts, x)

    def add_output(self, hidden: Array, inner: Array) -> Array:
        """Project the activations, and add that."""
        return self._add(hidden, self._parts["down"], inner)


def activated(weights: BlockWeights, roles: Mapping[str, Part], x: Array) -> Array:
    """Compute the inputs of an MLP's last layer from its own, by the layers that are its gate and up."""
    activation, up = weights.config.activation, weights.project(roles["up"], x)
    if "gate" not in roles:
        return activate(up, activation)
    return activate(weights.project(roles["gate"], x), activation, up)
