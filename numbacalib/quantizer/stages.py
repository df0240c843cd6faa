"""Pass of a text through a block that pauses at each stage, once the inputs of its layers are known."""

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
    """Pass all sequences through a block, in place, pausing once a stage's inputs are known.

    Experts are left out, with their outputs to the residual stream: see `expert_groups`.

    Yields the names of the layers that share an input, and that input's statistics; the caller replaces the
    layers' weights before it continues, so that later stages run on quantized ones. Attention's result is
    held for all tokens, and the MLP's wide activations if they are small; otherwise they are computed
    twice, as all are if the residual stream itself does not stay on the device.

    `original` is a block with unchanged weights and its own hidden states, of all parts or only the first:
    it runs along, and the statistics of those parts cover both.
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
    """Pass of a block over all sequences, part by part: `entries`, `middles` and `exits` yield inputs."""

    def __init__(self, block: DecoderBlock, decoder: Decoder, parts: Parts) -> None:
        self.block = block
        self.parts = parts
        self._inputs: Parts | None = None  # of an MLP parallel to attention
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
            del x, inner  # frees them before the next part's are computed

    def finish(self, number: int) -> None:
        """Add a sublayer's output to the residual stream."""
        half = self.block.sublayers[number]
        before = self._given(half)
        given = None if before is None else iter(before)
        beside = self.block.parallel and half is self.block.attention
        held = self.parts.others() if beside else None
        layer = f"{self.block.name}.{half.exit_stages[-1][0]}"
        ranges = []  # checked at the end, so that a device does not wait
        for part in self.parts.changed():
            if held is not None:
                held.append(self.block.mlp.input(part))
            if self._holds(half):
                inner = self._inner.pop(0)
            else:
                inner = half.inner(half.input(part) if given is None else next(given))
            half.add_output(part, inner)
            del inner  # frees it before the next part's is computed
            ranges.append(start_range_check(layer, part))
        for require in ranges:
            require()
        self._inputs = held

    def _given(self, half: Sublayer) -> Parts | None:
        """Inputs taken before attention added to the residual stream, for an MLP parallel to it."""
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
    """Start the check of `require_range`; return a function that waits for it and raises its error."""
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
    """Collect the inputs of stages that run together, with those of the original stream if there is one.

    If that has fewer parts, their statistics are merged with those of the remaining parts.
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
            each.clear()  # the loop variables would hold it beside the next part's, and after the loop
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
    """Yield the stages' inputs of each part, the original's, and the difference of its residual stream.

    The latter two are None for parts that the original stream lacks, the last also except at exits.
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
