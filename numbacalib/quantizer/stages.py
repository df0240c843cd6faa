"""A text's pass through a block that stops at each stage, where the inputs of its layers are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from numbacalib.models import Decoder, DecoderBlock
from numbacalib.models.experts import Experts
from numbacalib.models.layer_tensors import Stage
from numbacalib.models.parts import Parts
from numbacalib.models.stream import states_of
from numbacalib.models.sublayers import Sublayer
from numbacalib.ops.columns import magnitude_max
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

    `original` is a block whose weights nobody replaces, and hidden states of its own, which may be of the
    first parts alone: it does the same beside, and the statistics of those parts are of both.
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
        self.decoder = decoder

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
        """Add a sublayer's output to the residual stream."""
        half = self.block.sublayers[number]
        before = self._given(half)
        given = None if before is None else iter(before)
        beside = self.block.parallel and half is self.block.attention
        held = self.parts.others() if beside else None
        layer = f"{self.block.name}.{half.exit_stages[-1][0]}"
        ranges = []  # a device goes on meanwhile
        for part in self.parts.changed():
            if held is not None:
                held.append(self.block.mlp.input(part))
            if self._holds(half):
                inner = self._inner.pop(0)
            else:
                inner = half.inner(half.input(part) if given is None else next(given))
            half.add_output(part, inner)
            del inner  # which the next part's takes the place of
            ranges.append(start_range_check(layer, part))
        for require in ranges:
            require()
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
    start_range_check(layer, hidden)()


def start_range_check(layer: str, hidden: Any) -> Callable[[], None]:
    """Start what `require_range` does, and return what waits for it and raises."""
    largest = magnitude_max(rows_of(hidden), np.dtype(np.float32))

    def require() -> None:
        reached = float(to_host(largest).max())
        if not reached <= LARGEST_HIDDEN:
            raise ValueError(
                f"{layer}: hidden states reach {reached:g} after it, beyond the "
                f"{LARGEST_HIDDEN:g} whose squares float32 can sum"
            )

    return require


def _gathered(
    group: Sequence[Stage],
    streams: list[_Stream],
    inputs: Callable[[_Stream], Iterator[list[Any]]],
    residual_factor: float | None,
) -> Iterator[tuple[Stage, InputStatistics]]:
    """Collect the inputs of stages that run together, and those of the original stream where there is one.

    Where that has fewer parts, the statistics of these are merged with those of the others.
    """
    block = streams[0].block
    widths = [block.linears[stage[0]].shape[1] for stage in group]
    paired, alone = ([InputStatistics(width) for width in widths] for _ in range(2))
    waiting: list[tuple[str, Callable[[], None]]] = []
    for given, original, residual in _inputs(streams, inputs, residual_factor):
        _require(waiting)  # those of the part before, while a device runs this one
        waiting.clear()
        for number, stage in enumerate(group):
            layer = f"{block.name}.{stage[0]}"
            own = alone[number] if original is None else paired[number]
            companions = [] if original is None else [original[number], residual]
            with _named(layer):
                waiting.append((layer, own.start_update(given[number], *companions)))
            del companions
        del residual
        for each in (given, original or []):
            each.clear()  # the loop keeps it beside the next part's, and beside the work on the layers
    _require(waiting)
    for stage, both, rest in zip(group, paired, alone, strict=True):
        found = both.merge(rest) if both.tokens and rest.tokens else both if both.tokens else rest
        require_finite(f"{block.name}.{stage[0]}: mean of squared inputs", found.hessian)
        yield stage, found


def _inputs(
    streams: list[_Stream],
    inputs: Callable[[_Stream], Iterator[list[Any]]],
    residual_factor: float | None,
) -> Iterator[tuple[list[Any], list[Any] | None, Any]]:
    """Yield the stages' inputs of each part, the original ones, and what that residual stream has more.

    The latter two are None for parts that the original stream has not, the last also between halves.
    """
    own, *others = streams
    if not others:
        for given in inputs(own):
            yield given, None, None
        return
    (original,) = others
    originals = inputs(original)
    pairs: Iterator[tuple[Any, ...]] = iter(())
    if residual_factor is not None:
        first = own.parts.first(original.parts.tokens)
        pairs = zip(original.parts, first, strict=True)
    for given in inputs(own):
        wanted, pair = next(originals, None), next(pairs, None)
        residual = None
        if pair is not None and residual_factor is not None:
            share = 1 / residual_factor
            left, right = (states_of(own.decoder.config, each) for each in pair)
            residual = weighted_sum(left, right, share, -share, dtype=own.block.dtype)
        yield given, wanted, residual


def _require(waiting: Sequence[tuple[str, Callable[[], None]]]) -> None:
    """Wait for checks of layers' inputs, and raise the first error by the layer's name."""
    for layer, require in waiting:
        with _named(layer):
            require()


@contextmanager
def _named(layer: str) -> Iterator[None]:
    """Name the layer whose activations overflowed float32: weights and embeddings are finite."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{layer}: {error}: activations overflow float32") from None
