"""A mixture of experts in place of a block's MLP, whose weights are read a few experts at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.block_weights import Array, BlockWeights
from numbacalib.models.key_values import KeyValues
from numbacalib.models.layer_tensors import expert_parts, expert_stages
from numbacalib.models.parts import Parts
from numbacalib.models.stream import states_of, written_states
from numbacalib.models.sublayers import MLP, Sublayer, activated
from numbacalib.ops.linear import linear
from numbacalib.ops.matrix import (
    add_rows,
    add_scaled,
    cast,
    from_host,
    scaled,
    take,
    to_host,
    zeros,
)
from numbacalib.ops.rms_norm import rms_norm
from numbacalib.ops.router import route
from numbacalib.runtime.checks import rows_of
from numbacalib.spec.router import Routing

__all__ = ["Experts", "ExpertsRun"]

_SHARED = Routing(experts=1, scoring="sigmoid", normalized=False)
"""Routing of the shared expert's gate: a router of one expert, whose sigmoid is its weight."""


class Experts(MLP):
    """Experts, of which each token goes through a few, and an optional MLP shared by all tokens.

    `entry_stages`, `exit_stages` and `inner` are those of the shared MLP. Experts run in an `ExpertsRun`
    over all tokens, so that the weights of each are read once.

    Parameters
    ----------
    weights : BlockWeights
    index : int
        The block's number.
    """

    def __init__(self, weights: BlockWeights, index: int) -> None:
        mixture, names = weights.config.mixture_of(index), weights.config.architecture.experts
        assert mixture is not None
        assert names is not None
        if mixture.shared_size:
            super().__init__(weights, index)
        else:
            Sublayer.__init__(self, weights)
            self.entry_stages, self.exit_stages, self.width = (), (), 0
        self._names, self.mixture = names, mixture
        norms = self._config.architecture.norms
        self._expert_norm = norms.get("experts")
        self._expert_output_norm = norms.get("experts_output")
        self._shared_output_norm = norms.get("shared_output")
        self.stages = expert_stages(self._config, index)
        self.parts = expert_parts(self._config, index)

    def entries(self, x: Array) -> list[Array]:
        return [x] if self.entry_stages else []

    def inner(self, x: Array) -> Any:
        """Return the shared MLP's activations; None without a shared MLP."""
        return super().inner(x) if self.entry_stages else None

    def exits(self, inner: Any) -> list[Array]:
        return [inner] if self.exit_stages else []

    def forward_parts(self, parts: Parts) -> None:
        run = ExpertsRun(self, parts)
        for expert in range(self.mixture.experts):
            with self.loaded([expert]):
                run.add(expert, run.activations(expert))
        run.finish()

    def forward(self, hidden: Array, before: KeyValues | None = None) -> Array:
        del before
        self.forward_parts(Parts([hidden]))
        return hidden

    def add_output(self, hidden: Array, inner: Any) -> Array:
        """Run on ``hidden``; `inner` is not used, since experts compute their tokens' activations."""
        del inner
        return self.forward(hidden)

    def expert_input(self, hidden: Array) -> Array:
        """Normalize ``hidden`` ``[..., hidden_size]`` for the experts."""
        if self._expert_norm is None:
            return self.input(hidden)
        return self._weights.norm(self._expert_norm, states_of(self._config, hidden))

    def latent_input(self, x: Array) -> Array:
        """Project the router's input to the experts' input, which is shorter in some models."""
        if not self.mixture.latent_size:
            return x
        weight = self._weights.vectors[f"{self._names.latent}.weight"]
        return cast(linear(cast(x, np.float32), weight), x.dtype)

    def routes(self, hidden: Array, x: Array) -> _Routes:
        """Choose tokens' experts from their states ``[..., hidden_size]``, or from the experts' inputs."""
        vectors, names = self._weights.vectors, self._names
        rows = cast(rows_of(x), np.float32)
        if names.router_norm:
            states = rows_of(states_of(self._config, hidden))
            weight = scaled(vectors[names.router_norm], self._config.hidden_size**-0.5)
            rows = rms_norm(states, weight, self._config.rms_norm_eps, np.float32)
        bias = vectors.get(f"{names.router}.bias")
        scores = linear(rows, vectors[f"{names.router}.weight"], bias)
        correction = vectors[names.correction].reshape(-1) if names.correction else None
        factors = to_host(vectors[names.factors]) if names.factors else None
        return _Routes(*route(scores, self.mixture.routing, correction), factors)

    def add_shared(self, sums: Array, hidden: Array) -> Array:
        """Project sums over experts [N, hidden_size or less] to states, and add the shared MLP's output."""
        if self.mixture.latent_size:
            sums = linear(sums, self._weights.vectors[f"{self._names.latent_output}.weight"])
        if self._expert_output_norm is not None:
            sums = self._weights.norm(self._expert_output_norm, sums, np.float32)
        if self.exit_stages:
            self._add_shared(sums, self.input(hidden))
        return sums

    def _add_shared(self, sums: Array, x: Array) -> None:
        part, inner = self._parts["down"], self.inner(x).reshape(len(sums), -1)
        if self._shared_output_norm is not None:
            output = self._weights.project(part, inner, dtype=np.float32)
            add_scaled(sums, self._weights.norm(self._shared_output_norm, output, np.float32), 1.0)
            return
        if not self._names.shared_gate:
            self._weights.project(part, inner, add_to=sums)
            return
        rows = cast(rows_of(x), np.float32)
        scores = linear(rows, self._weights.vectors[f"{self._names.shared_gate}.weight"])
        _, factors = route(scores, _SHARED)
        output = self._weights.project(part, inner, dtype=np.float32)
        add_rows(sums, np.arange(len(sums)), output, factors.reshape(-1))

    def add_sums(self, hidden: Array, sums: Array) -> None:
        """Add the sums over experts to the residual stream, normalized and scaled."""
        if self._output_norm is not None:
            sums = self._weights.norm(self._output_norm, sums, np.float32)
        with written_states(self._config, hidden) as states:
            add_scaled(states.reshape(sums.shape), sums, self._config.residual_scale)
        if not self._config.layer_input_size:
            self._scale_block(hidden)

    def expert_inner(self, expert: int, rows: Array) -> Array:
        """Compute the inputs of an expert's down projection from the expert's inputs."""
        return activated(self._weights, self.parts[expert], rows)

    def expert_output(self, expert: int, inner: Array) -> Array:
        """Compute an expert's outputs, float32."""
        return self._weights.project(self.parts[expert]["down"], inner, dtype=np.float32)

    @contextmanager
    def loaded(self, experts: Sequence[int]) -> Iterator[None]:
        """Load experts' weights into the block's linear layers inside the ``with`` statement."""
        names = [part.name for expert in experts for part in self.parts[expert].values()]
        linears = self._weights.linears
        linears |= self._weights.read(names)
        try:
            yield
        finally:
            for name in names:
                del linears[name]


class _Routes:
    """The tokens of each expert."""

    def __init__(
        self, experts: Array, weights: Array, factors: NDArray[np.float32] | None = None
    ) -> None:
        self._factors = factors
        count, kept = experts.shape
        chosen = to_host(experts).ravel()
        self._order = np.argsort(chosen, kind="stable")
        self._tokens = self._order // kept
        self._chosen = chosen[self._order]
        self._weights = weights.reshape(count * kept, 1)

    def tokens(self, expert: int) -> NDArray[np.int64]:
        """Return the indices of the tokens routed to an expert."""
        return self._tokens[self._run(expert)]

    def factors(self, expert: int) -> Array:
        """Return the expert's weight for each of its tokens, float32 [n]."""
        found = take(self._weights, self._order[self._run(expert)], 0)
        if self._factors is not None:
            found = scaled(found, float(self._factors[expert]))
        return found.reshape(-1)

    def _run(self, expert: int) -> slice:
        first, last = np.searchsorted(self._chosen, [expert, expert + 1])
        return slice(int(first), int(last))


class Piece(NamedTuple):
    """Rows of an expert's tokens that belong to one part of all tokens."""

    part: int
    rows: Array


class ExpertsRun:
    """One pass of all tokens through a block's experts, of which only a few are loaded at a time.

    Parameters
    ----------
    experts : Experts
    parts : Parts of float32 arrays ``[..., hidden_size]``
        The residual stream, to which `finish` adds.

    Attributes
    ----------
    experts : Experts
    inputs : list of arrays ``[..., hidden_size]``, or of shorter vectors
        Normalized tokens of each part: the inputs of all experts.
    """

    def __init__(self, experts: Experts, parts: Parts) -> None:
        self.experts, self._parts = experts, parts
        self.inputs, self._routes = [], []
        for part in parts:
            x = experts.expert_input(part)
            self._routes.append(experts.routes(part, x))
            self.inputs.append(experts.latent_input(x))
        self._rows = [rows_of(x) for x in self.inputs]
        self._sums = [zeros(tuple(rows.shape), rows) for rows in self._rows]

    def rows(self, expert: int) -> list[Piece]:
        """Return the inputs of an expert: its tokens, part by part."""
        found = []
        for part, (rows, routes) in enumerate(zip(self._rows, self._routes, strict=True)):
            tokens = routes.tokens(expert)
            if len(tokens):
                taken = take(rows, tokens, 0)
                if self.experts.mixture.scales_inputs:
                    taken = cast(scaled(taken, 1.0, routes.factors(expert)), rows.dtype)
                found.append(Piece(part, taken))
        return found

    def activations(self, expert: int) -> list[Piece]:
        """Compute the inputs of a loaded expert's down projection for its tokens."""
        inner = self.experts.expert_inner
        return [Piece(part, inner(expert, rows)) for part, rows in self.rows(expert)]

    def activations_of_all(self, expert: int) -> Iterator[Array]:
        """Compute the same for all tokens, part by part, regardless of routing."""
        return (self.experts.expert_inner(expert, rows) for rows in self._rows)

    def add(self, expert: int, activations: Sequence[Piece]) -> None:
        """Add the outputs of a loaded expert, given the result of `activations`."""
        for part, inner in activations:
            routes, output = self._routes[part], self.experts.expert_output(expert, inner)
            factors = routes.factors(expert)
            if self.experts.mixture.scales_inputs:
                factors = from_host(np.ones(len(output), np.float32), output)
            add_rows(self._sums[part], routes.tokens(expert), output, factors)

    def finish(self) -> None:
        """Add the sums over experts and the shared MLP's outputs to the residual stream."""
        for hidden, sums in zip(self._parts.changed(), self._sums, strict=True):
            self.experts.add_sums(hidden, self.experts.add_shared(sums, hidden))
