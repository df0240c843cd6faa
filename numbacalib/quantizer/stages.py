"""A text's pass through a block that stops at each stage, where the inputs of its layers are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from numbacalib.models import Decoder, DecoderBlock
from numbacalib.models.experts import Experts
from numbacalib.models.layer_tensors import Stage
from numbacalib.models.parts import Parts
from numbacalib.models.sublayers import Sublayer
from numbacalib.ops.magnitudes import channel_magnitudes
from numbacalib.ops.matrix import to_host, weighted_sum
from numbacalib.runtime.checks import rows_of
from numbacalib.runtime.finite import require_finite
from numbacalib.statistics import InputStatistics

LARGEST_HIDDEN = 1e17
"""Largest input of a norm: the squares of 30,000 of them stay within float32."""


def run_stages(
    block: DecoderBlock,
    decoder: Decoder,
    parts: Parts,
    original: tuple[DecoderBlock, Parts] | None = None,
) -> Iterator[tuple[Stage, InputStatistics]]:
    """Pass all sequences through a block, in place, stopping where a stage's inputs are known.

    Experts are left out, with what they give to the residual stream: see `expert_groups`.

    Yields the names of the layers that share an input, and that input's statistics; the caller
    replaces the layers' weights before it goes on, so that what follows runs on quantized ones. The
    attention's result is held for all tokens, and the MLP's wide activations where they are small; else
    they are computed twice, as all are where the residual stream itself is in no device's memory.

    `original` is a block whose weights nobody replaces, and a hidden state of its own: it does the same
    beside, and the statistics are of both.
    """
    streams = [_Stream(block, decoder, parts)]
    if original is not None:
        streams.append(_Stream(original[0], decoder, original[1]))
    for number, half in enumerate(block.sublayers):
        for gather, group in (
            (_Stream.entries, half.entry_stages),
            (_Stream.middles, half.middle_stages),
            (_Stream.exits, half.exit_stages),
        ):
            factor = half.residual_factor if gather is _Stream.exits else None
            if group:
                yield from _gathered(group, streams, partial(gather, number=number), factor)
        if not isinstance(half, Experts):
            for stream in streams:
                stream.finish(number)


class _Stream:
    """A block's pass over all sequences, part by part: `entries` and `exits` yield stages' inputs."""

    def __init__(self, block: DecoderBlock, decoder: Decoder, parts: Parts) -> None:
        self.block = block
        self.parts = parts
        self._inputs: Parts | None = None  # of the MLP beside attention
        self._inner: list[Any] = []
        self._held_bytes = decoder.place.held_bytes

    def entries(self, number: int) -> Iterator[list[Any]]:
        """Inputs of a sublayer's entry stages, for each part."""
        half = self.block.sublayers[number]
        return (half.entries(x) for x in self._sublayer_inputs(half))

    def middles(self, number: int) -> Iterator[list[Any]]:
        """Inputs of a sublayer's middle stages, for each part."""
        half = self.block.sublayers[number]
        return (half.middles(x) for x in self._sublayer_inputs(half))

    def exits(self, number: int) -> Iterator[list[Any]]:
        """Inputs of a sublayer's exit stages, for each part."""
        half = self.block.sublayers[number]
        for x in self._sublayer_inputs(half):
            inner = half.inner(x)
            if self._holds(half):
                self._inner.append(inner)
            yield half.exits(inner)
            del x, inner  # which the next part's take the place of

    def finish(self, number: int) -> None:
        """Add what a sublayer gives to the residual stream."""
        half = self.block.sublayers[number]
        before = self._given(half)
        given = None if before is None else iter(before)
        beside = self.block.parallel and half is self.block.attention
        held = self.parts.others() if beside else None
        for part in self.parts.changed():
            if held is not None:
                held.append(self.block.mlp.input(part))
            if self._holds(half):
                inner = self._inner.pop(0)
            else:
                inner = half.inner(half.input(part) if given is None else next(given))
            half.add_output(part, inner)
            del inner  # which the next part's takes the place of
            require_range(f"{self.block.name}.{half.exit_stages[-1][0]}", part)
        self._inputs = held

    def _given(self, half: Sublayer) -> Parts | None:
        """Inputs that were taken before attention added to the residual stream, where they were."""
        return self._inputs if half is self.block.mlp else None

    def _sublayer_inputs(self, half: Sublayer) -> Iterator[Any]:
        given = self._given(half)
        return map(half.input, self.parts) if given is None else iter(given)

    def _holds(self, half: Sublayer) -> bool:
        if isinstance(half, Experts) or not self.parts.stay:
            return False
        wide = self.parts.tokens * half.width * self.block.dtype.itemsize
        return not half.is_cheap or wide <= self._held_bytes


def require_range(layer: str, hidden: Any) -> None:
    """Check that hidden states [..., hidden] can be normalized, once a layer has added to them."""
    _, largest = channel_magnitudes(rows_of(hidden))
    reached = float(to_host(largest).max())
    if not reached <= LARGEST_HIDDEN:
        raise ValueError(
            f"{layer}: hidden states reach {reached:g} after it, beyond the "
            f"{LARGEST_HIDDEN:g} whose squares float32 can sum"
        )


def _gathered(
    group: Sequence[Stage],
    streams: list[_Stream],
    inputs: Callable[[_Stream], Iterator[list[Any]]],
    residual_factor: float | None,
) -> Iterator[tuple[Stage, InputStatistics]]:
    """Collect the inputs of stages that run together, of the original stream too where there are two.

    Weights and embeddings are known to be finite, so that it is activations that left float32 if a value
    is not: the error names the layer.
    """
    block = streams[0].block
    statistics = [InputStatistics(block.linears[stage[0]].shape[1]) for stage in group]
    passes = [inputs(stream) for stream in streams]
    beside = len(streams) > 1 and residual_factor is not None
    parts = [stream.parts for stream in streams] if beside else []
    for given in zip(*passes, *parts, strict=True):
        residual = None
        if beside and residual_factor is not None:
            own, wanted = given[2:]
            factors = 1 / residual_factor, -1 / residual_factor
            residual = weighted_sum(wanted, own, *factors, dtype=block.dtype)
        for number, stage in enumerate(group):
            companions = [given[1][number], residual] if len(streams) > 1 else []
            try:
                statistics[number].update(given[0][number], *companions)
            except ValueError as error:
                layer = f"{block.name}.{stage[0]}"
                raise ValueError(f"{layer}: {error}: activations overflow float32") from None
        del companions, residual
        for each in given[: len(streams)]:
            each.clear()  # the loop keeps it beside the next part's, and beside the work on the layers
    for stage, found in zip(group, statistics, strict=True):
        require_finite(f"{block.name}.{stage[0]}: mean of squared inputs", found.hessian)
        yield stage, found
