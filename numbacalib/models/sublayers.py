"""The halves of a decoder block: attention and MLP, each of which adds to the residual stream.

Both are split at the inputs of linear layers, so that a quantizer sees each input and replaces the weights
before later layers run:

- `input`: from the residual stream, normalized, to the input of the entry layers;
- `inner`: from there to the inputs of the exit layers;
- `add_output`: through the exit layers, into the residual stream.

A sublayer may have several stages at either end, or none, or some between, as latent attention has:
`entries`, `middles` and `exits` return an array for each of `entry_stages`, `middle_stages` and
`exit_stages`.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from numbacalib.models.block_weights import Array, BlockWeights
from numbacalib.models.key_values import KeyValues, joined_tokens
from numbacalib.models.layer_tensors import Part, Stage, attention_stages, mlp_stages, parts
from numbacalib.models.parts import Parts
from numbacalib.models.rope import RotaryEmbedding
from numbacalib.models.stream import states_of, written_states
from numbacalib.ops.activation import activate, activate_clamped
from numbacalib.ops.attention import attention
from numbacalib.ops.linear import linear
from numbacalib.ops.matrix import (
    add_scaled,
    cast,
    column_range,
    from_host,
    joined_rows,
    row_range,
    scaled,
    to_host,
    zeros,
)
from numbacalib.ops.rms_norm import rms_norm
from numbacalib.ops.rotary import rotate
from numbacalib.runtime.checks import rows_of

__all__ = ["MLP", "Attention", "Missing", "Mixer", "Sublayer", "activated"]


class Sublayer(abc.ABC):
    """Half a block.

    Attributes
    ----------
    entry_stages, middle_stages, exit_stages : tuple of tuple of str
        Linear layers that share an input, at either end and between.
    width : int
        Length of a token's vector from `inner`.
    is_cheap : bool
        Whether `inner` is fast enough to be computed twice instead of held.
    """

    entry_stages: tuple[Stage, ...]
    middle_stages: tuple[Stage, ...] = ()
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
        """Factor of the exit layers' outputs in the residual stream; None if a norm follows them."""
        return None if self._output_norm else self._config.residual_scale

    def input(self, hidden: Array) -> Array:
        """Normalize ``hidden`` ``[..., T, hidden_size]``, or only cast it if there is no norm."""
        states = states_of(self._config, hidden)
        if self._input_norm is None:
            return cast(states, self._weights.dtype)
        return self._weights.norm(self._input_norm, states)

    def entries(self, x: Array) -> list[Array]:
        """Return the inputs of the entry stages, given the result of `input`."""
        return [x]

    def middles(self, x: Array) -> list[Array]:
        """Return the inputs of the middle stages, given the result of `input`."""
        del x
        return []

    @abc.abstractmethod
    def inner(self, x: Array) -> Any:
        """Compute the argument of `exits` and `add_output` from the result of `input`."""

    def exits(self, inner: Any) -> list[Array]:
        """Return the inputs of the exit stages, given the result of `inner`."""
        return [inner]

    @abc.abstractmethod
    def add_output(self, hidden: Array, inner: Any) -> Array:
        """Add the output to ``hidden`` ``[..., T, hidden_size]`` in place, and return it."""

    def forward(self, hidden: Array, before: KeyValues | None = None) -> Array:
        """Run the sublayer on ``hidden``, in place, and return it.

        `before` are the tokens before these, of which attention adds the keys and values: only for a block
        that `numbacalib.models.block.holds_keys`.
        """
        del before
        return self.add_output(hidden, self.inner(self.input(hidden)))

    def forward_parts(self, parts: Parts) -> None:
        """Run the sublayer on each part of the tokens, in place."""
        for part in parts.changed():
            self.forward(part)

    def _add(self, hidden: Array, part: Any, x: Array) -> Array:
        """Add a linear layer's outputs, with the architecture's norm and scale."""
        factor = self._config.residual_scale
        with written_states(self._config, hidden) as states:
            if self._output_norm is None and factor == 1:
                self._weights.project(part, x, add_to=states)
                return hidden
            output = self._weights.project(part, x, dtype=np.float32)
            if self._output_norm is not None:
                output = self._weights.norm(self._output_norm, output, np.float32)
            add_scaled(states, output, factor)
        return hidden

    def _scale_block(self, hidden: Array) -> None:
        """Multiply the block's output by its scalar, if any; called by the last sublayer."""
        scale = self._weights.vectors.get(self._config.architecture.block_scale)
        if scale is not None:
            with written_states(self._config, hidden) as states:
                add_scaled(states, states, float(to_host(scale)[0]) - 1)


class Missing(Sublayer):
    """Stand-in for a half that a block does not have: it has no norm and adds nothing."""

    role = "none"
    entry_stages, exit_stages, width = (), (), 0

    def inner(self, x: Array) -> None:
        del x

    def add_output(self, hidden: Array, inner: None) -> Array:
        del inner
        return hidden


class Mixer(Sublayer):
    """Base of replacements of a block's attention, with one stage at either end."""

    role = "attention"

    def __init__(self, weights: BlockWeights, index: int) -> None:
        super().__init__(weights)
        self._parts = parts(self._config, index)
        entry, exit_ = attention_stages(self._config, index)
        self.entry_stages, self.exit_stages = (entry,), (exit_,)

    def add_output(self, hidden: Array, inner: Array) -> Array:
        """Project the result of `inner`, and add it."""
        return self._add(hidden, self._parts["output"], inner)


class Attention(Sublayer):
    """Causal attention of each token to itself and those before it in its sequence.

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
        self._chunk = config.chunks[index] if config.chunks else None
        self._turns = config.turns(index)
        self._parts = parts(config, index)
        entry, *middle, exit_ = attention_stages(config, index)
        self.entry_stages, self.middle_stages, self.exit_stages = (entry,), tuple(middle), (exit_,)
        self._kv_heads, self._size = config.heads_of(index)
        self.width = config.queries_of(index) * self._size

    def inner(self, x: Array) -> Array:
        """Attend: ``[..., T, hidden_size]`` to ``[..., T, num_heads * head_dim]``."""
        return self._contexts(x, *self._turned(x))

    def forward(self, hidden: Array, before: KeyValues | None = None) -> Array:
        """See `Sublayer.forward`."""
        if before is None:
            return super().forward(hidden)
        x = self.input(hidden)
        queries, keys, values, gates = self._turned(x, before.length)
        keys, values = before.extended(keys, values)
        return self.add_output(hidden, self._contexts(x, queries, keys, values, gates))

    def _turned(self, x: Array, first: int = 0) -> tuple[Array, Array, Array, Array | None]:
        """Compute heads ``[S, T, heads, head_dim]``, normalized and rotated, and the output gates.

        The tokens are at positions from `first` on.
        """
        config = self._config
        *_, length, _ = x.shape
        queries, keys, values, gates = self._heads(x)
        by_head = config.qk_norm and config.architecture.qk_norm != "all"
        by_head = by_head and (self._turns or config.architecture.qk_norm != "unit")
        if by_head and not config.architecture.norm_after_rotary:
            queries, keys = self._normalized(queries, keys)
        if self._rope is not None:
            interleaved = config.architecture.interleaved
            for heads, tables in (
                (queries, self._rope.query_tables(first + length)),
                (keys, self._rope.tables(first + length)),
            ):
                own = (
                    [row_range(table, first, first + length) for table in tables]
                    if first
                    else tables
                )
                rotate(heads, *own, interleaved=interleaved)
        if by_head and config.architecture.norm_after_rotary:
            queries, keys = self._normalized(queries, keys)
        return queries, keys, values, gates

    def _contexts(
        self, x: Array, queries: Array, keys: Array, values: Array, gates: Array | None
    ) -> Array:
        """Compute the outputs of attention: the inputs of the exit layer.

        There may be keys and values of tokens before those of `x`.
        """
        config = self._config
        sequences, length, *_ = keys.shape
        earlier = length - queries.shape[1]
        queries = _behind_nothing(queries, earlier)  # whose outputs are not used
        attend = partial(
            attention,
            window=self._window,
            scale=config.attention_scale,
            cap=config.attention_cap,
            sinks=self._weights.vectors.get(config.architecture.sinks),
        )
        if self._chunk is None or length <= self._chunk:
            context = attend(queries, keys, values)
        else:
            found = [attend(*run) for run in self._runs((queries, keys, values), length)]
            context = joined_rows([run.reshape(-1, self.width) for run in found])
        if earlier:
            rows = context.reshape(sequences, length * self.width)
            context = column_range(rows, earlier * self.width, length * self.width)
        if gates is not None:
            context = activate(gates, "sigmoid", context.reshape(*gates.shape))
        if config.architecture.head_gate:
            context = self._gated(x, context)
        return context.reshape(*x.shape[:-1], self.width)

    def _gated(self, x: Array, context: Array) -> Array:
        """Multiply each head's output by its gate."""
        architecture = self._config.architecture
        weight = self._weights.vectors[f"{architecture.head_gate}.weight"]
        gates = linear(cast(rows_of(x), np.float32), weight)
        gates = activate(gates, architecture.head_gate_activation).reshape(-1)
        heads = scaled(context.reshape(-1, self._size), 1.0, gates)
        return cast(heads, self._weights.dtype)

    def _runs(self, heads: Sequence[Array], length: int) -> Iterator[list[Array]]:
        """Split heads ``[S, T, ...]`` into chunks of positions ``[1, t, ...]`` that attend separately."""
        flat = [array.reshape(-1, array.shape[2] * array.shape[3]) for array in heads]
        step = self._chunk or length
        for start in range(0, flat[0].shape[0], length):
            for first in range(start, start + length, step):
                end = min(first + step, start + length)
                yield [
                    row_range(rows, first, end).reshape(1, end - first, *array.shape[2:])
                    for rows, array in zip(flat, heads, strict=True)
                ]

    def _heads(self, x: Array) -> tuple[Array, Array, Array, Array | None]:
        """Project to query, key and value heads ``[S, T, heads, head_dim]``, and output gates."""
        if "query_key_value" in self._parts:
            return *self._taken_apart(x), None
        size, gates = self._size, None
        if "query_gate" in self._parts:
            both = self._by_head(self._projected("query_gate", x), 2 * size)
            queries, gates = column_range(both, 0, size), column_range(both, size, 2 * size)
        else:
            queries = self._projected("query", x)
            if "attention_gate" in self._parts:
                gates = self._by_head(self._projected("attention_gate", x), size)
        keys = self._projected("key", x)
        values = self._projected("value", x) if "value" in self._parts else keys
        if self._config.qk_norm and self._config.architecture.qk_norm == "all":
            queries, keys = self._normalized(queries, keys)
        if "query" in self._parts:
            queries = self._by_head(queries, size)
        keys, values = self._by_head(keys, size), self._by_head(values, size)
        if self._config.architecture.value_norm:
            values = self._unit(values)
        return queries, keys, values, gates

    def _projected(self, role: str, x: Array) -> Array:
        return self._weights.project(self._parts[role], x)

    def _by_head(self, y: Array, size: int) -> Array:
        """Reshape outputs ``[..., T, heads * size]`` to ``[S, T, heads, size]``."""
        *_, length, rows = y.shape
        return y.reshape(-1, length, rows // size, size)

    def _taken_apart(self, x: Array) -> tuple[Array, Array, Array]:
        """Compute query, key and value heads from a fused layer that is ordered by key head."""
        count, size = self._kv_heads, self._size
        part = self._parts["query_key_value"]
        together = self._by_head(self._weights.project(part, x), part.rows // count)
        keys = part.rows // count - 2 * size
        queries = column_range(together, 0, keys)
        values = column_range(together, keys + size, keys + 2 * size)
        *_, length, _, _ = together.shape
        queries = queries.reshape(-1, length, self.width // size, size)
        return queries, column_range(together, keys, keys + size), values

    def add_output(self, hidden: Array, inner: Array) -> Array:
        """Project the outputs of attention, and add them."""
        return self._add(hidden, self._parts["output"], inner)

    def _normalized(self, queries: Array, keys: Array) -> tuple[Array, Array]:
        norms = self._config.architecture.norms
        if self._config.architecture.qk_norm == "unit":
            return self._unit(queries), self._unit(keys)
        return self._weights.norm(norms["query"], queries), self._weights.norm(norms["key"], keys)

    def _unit(self, heads: Array) -> Array:
        """Normalize heads without a weight."""
        ones = from_host(np.ones(self._size, np.float32), heads)
        return rms_norm(heads, ones, self._config.rms_norm_eps, self._weights.dtype)


class MLP(Sublayer):
    """Two linear layers with an activation between them, gated or not."""

    role = "mlp"

    def __init__(self, weights: BlockWeights, index: int) -> None:
        super().__init__(weights)
        self._parts = parts(self._config, index)
        entry, exit_ = mlp_stages(self._config, index)
        self.entry_stages, self.exit_stages = (entry,), (exit_,)
        up = self._parts["up"]
        self.width = up.end - up.begin

    def inner(self, x: Array) -> Array:
        """``activation(gate) * up``, or ``activation(up)``, ``[..., T, intermediate_size]``."""
        return activated(self._weights, self._parts, x)

    def add_output(self, hidden: Array, inner: Array) -> Array:
        """Project the activations, and add them."""
        self._add(hidden, self._parts["down"], inner)
        if not self._config.layer_input_size:
            self._scale_block(hidden)
        return hidden


def activated(weights: BlockWeights, roles: Mapping[str, Part], x: Array) -> Array:
    """Compute the inputs of an MLP's down projection by the layers of its gate and up roles."""
    activation, up = weights.config.activation, weights.project(roles["up"], x)
    if "gate" not in roles:
        return activate(up, activation)
    if weights.config.gate_clamp is not None:
        return activate_clamped(weights.project(roles["gate"], x), up, *weights.config.gate_clamp)
    return activate(weights.project(roles["gate"], x), activation, up)


def _behind_nothing(heads: Array, earlier: int) -> Array:
    """Put heads ``[S, T, H, D]`` behind zeros of so many earlier tokens."""
    if not earlier:
        return heads
    sequences, _, *rest = heads.shape
    shape = sequences, earlier, *rest
    nothing = cast(zeros((math.prod(shape), 1), heads), heads.dtype)
    return joined_tokens(nothing.reshape(shape), heads)
