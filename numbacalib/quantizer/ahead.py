"""GPU kernels compiled by processes beside a run's first block, where none are on disk yet.

A process compiles one kernel at a time, and a run needs some sixty. What it will need later is compiled by
others meanwhile: each rehearses the same functions on a block of the same model, without a device
(`numbacalib.runtime.rehearsal`), compiles of what they launch what no other is at, the longest first, and
leaves it on disk (`numbacalib.runtime.cubins`), where the run finds it, or waits for one that is under way.
What they fail to do, it does itself.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.linalg import factor_hessians
from numbacalib.methods import LayerSettings, QuantizedWeight, quantize_layers, rtn
from numbacalib.methods.layer_options import grid_options, searched_options
from numbacalib.methods.order import column_orders
from numbacalib.methods.settings import AskedGrid, grid_settings
from numbacalib.methods.solver import sweep
from numbacalib.models import (
    EMBEDDINGS,
    Checkpoint,
    Decoder,
    DecoderBlock,
    Place,
    open_checkpoint,
)
from numbacalib.ops.magnitudes import channel_magnitudes
from numbacalib.ops.matrix import diagonals, weighted_sum
from numbacalib.quantizer.settings import Settings
from numbacalib.quantizer.stages import require_range
from numbacalib.quantizer.trial import storing
from numbacalib.runtime import checks, kernel_files
from numbacalib.runtime.backend import arrays_of_one_device
from numbacalib.runtime.identity import code_size
from numbacalib.runtime.rehearsal import Facts, facts_of_device, rehearse
from numbacalib.statistics import InputStatistics

LEAST_PROCESSORS = 8
"""Processors at least: with fewer the processes would stand in the run's way."""
MOST_PROCESSES = 12
"""More would wait for the longest kernel of all."""
TOKENS = 1 << 20
"""Tokens that are said to have been seen: enough for any layer."""


@dataclass(frozen=True)
class _Order:
    """Order of what a process is to do, as it is sent to it."""

    model: str
    settings: Settings
    place: Place
    facts: Facts
    first: bool
    """Compile what the host needs, too: one process does."""


class CompiledAhead:
    """Processes that compile beside a run, which the ``with`` statement ends.

    That they have done so is remembered if it ends well. Where kernels of such runs were never compiled,
    they are started at once: both they and a device take a second to begin.

    Parameters
    ----------
    checkpoint : Checkpoint
    settings : Settings
    device : str
        Where the run was asked to be.
    """

    def __init__(self, checkpoint: Checkpoint, settings: Settings, device: str) -> None:
        self._checkpoint = checkpoint
        self._settings = settings
        self._identity: bytes | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        if device != "cpu" and _has_device() and not kernel_files.is_there(self._mark):
            self._start()

    def __enter__(self) -> CompiledAhead:
        return self

    def begin(self, place: Place) -> None:
        """Tell the processes what to do for a run at a place, if that has anything to compile."""
        if place.name == "cpu" or not _are_kept():
            self._end()
            return
        identity = _identity()
        if kernel_files.load(self._mark, identity) is not None:
            self._end()
            return
        if not self._processes:
            self._start()
        facts = facts_of_device()
        for number, process in enumerate(self._processes):
            model = str(self._checkpoint.path)
            _send(process, _Order(model, self._settings, place, facts, number == 0))
        self._identity = identity

    def __exit__(self, kind: object, *_: object) -> None:
        self._end()
        if self._identity is not None and kind is None:
            kernel_files.store(self._mark, self._identity, b"done")

    @cached_property
    def _mark(self) -> str:
        """Name of the file that says that kernels of such runs are there."""
        checkpoint, settings = self._checkpoint, self._settings
        options = settings.method, settings.ranges, settings.act_order, settings.static_groups
        model = checkpoint.info(EMBEDDINGS).dtype, checkpoint.config.architecture.model_type
        improved = settings.target, settings.refits, settings.descents
        return "-".join(["run", *map(str, (*model, *options, *improved))]) + ".mark"

    def _start(self) -> None:
        processors = _processors()
        if processors >= LEAST_PROCESSORS:
            count = min(MOST_PROCESSES, processors * 3 // 4)
            self._processes = [_started() for _ in range(count)]

    def _end(self) -> None:
        for process in self._processes:
            with process:  # which waits
                process.kill()  # it has nothing that others miss
        self._processes = []


def _has_device() -> bool:
    """Return whether there is a GPU, before the libraries are loaded that work with it."""
    if not find_spec("cupy"):
        return False
    try:
        from cuda.bindings import driver

        driver.cuInit(0)
        error, count = driver.cuDeviceGetCount()
    except (ImportError, RuntimeError):  # without bindings, or a driver
        return False
    return not error and count > 0


def _processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _are_kept() -> bool:
    """Return whether compiled kernels are kept on disk, and a process can be started that compiles some."""
    from numbacalib.runtime.device import PACKED

    return PACKED and bool(sys.executable)


def _identity() -> bytes:
    """Return what kernels depend on."""
    from numbacalib.runtime.cubins import versions

    return repr(versions()).encode() + kernel_files.sources(Path(__file__))


def _started() -> subprocess.Popen[bytes]:
    """Start a process that waits for an order; what it prints is of no use to anybody."""
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _send(process: subprocess.Popen[bytes], order: _Order) -> None:
    assert process.stdin is not None
    with suppress(OSError), process.stdin as stream:  # it may have ended
        stream.write(pickle.dumps(order))


def _attention(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run what passes the text through attention."""
    block.attention.forward(_states(decoder, settings))


def _mlp(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run what passes the text through the MLP."""
    block.mlp.forward(_states(decoder, settings))


def _hessian(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run what collects statistics."""
    shape = settings.sequence_length, decoder.config.hidden_size
    inputs = decoder.place.put(np.zeros(shape, block.dtype))
    InputStatistics(decoder.config.hidden_size).update(inputs)


def _columns(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run what looks at columns, of statistics and of the residual stream."""
    states = _states(decoder, settings)
    channel_magnitudes(checks.rows_of(block.attention.input(states)))
    require_range(block.name, states)


def _factor(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run what factors a Hessian."""
    hessian = _statistics(decoder.place, decoder.config.hidden_size).hessian
    with arrays_of_one_device(hessian=hessian) as (hessian,):
        hessians = checks.stack_of_one(hessian)
        orders = _orders(diagonals(hessians), block, settings)
        order = None if orders is None else orders.order
        factors = factor_hessians(
            hessians, [settings.percdamp], dtype=np.dtype(np.float32), orders=order
        )
        diagonals(factors.upper)


def _panels(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run what factors a Hessian of a block's last layer, which is large and goes in panels."""
    channels = block.linears[block.stages[-1][0]].shape[1]
    hessian = decoder.place.zeros((channels, channels))
    factor_hessians(checks.stack_of_one(hessian), [settings.percdamp])


def _sweep(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run what quantizes columns by a factor."""
    weight = block.linears[block.stages[0][0]]
    rows, channels = weight.shape
    upper = decoder.place.zeros((channels, channels))
    spread = decoder.place.put(np.ones((1, channels), np.float32))
    with arrays_of_one_device(weight=weight, upper=upper, spread=spread) as (weight, upper, spread):
        grid = grid_settings(weight, AskedGrid(**grid_options(_layer(block, settings))))
        orders = _orders(spread, block, settings)
        stack = checks.stack_of_one(upper)
        sweep(weight, stack, orders, grid, settings.static_groups, [rows])


def _search(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run what finds scales, and what decodes codes."""
    layer = _layer(block, settings)
    weight = block.linears[block.stages[0][0]]
    statistics = _statistics(decoder.place, weight.shape[1])
    options = searched_options(layer)
    if settings.ranges == "weighted":
        options["importance"] = statistics.mean_square
    rtn(weight, **options).dequantize(block.dtype)


def _measure(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run what measures layers, the solver's apart."""
    _solve(decoder, block, replace(settings, method="rtn", ranges="full"))


def _solve(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run all that quantizes layers: what the others leave."""
    for stage in (block.stages[0], block.stages[-1]):
        weights = {kind: block.linears[kind] for kind in stage}
        statistics = _statistics(decoder.place, weights[stage[0]].shape[1])
        quantize_layers(weights, statistics, _layer(block, settings))


def _target(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run what finds a propagated target, quantizes it, which is float32, and measures losses to it."""
    stage = block.stages[-1]
    weight = block.linears[stage[0]]
    channels = weight.shape[1]
    inputs = decoder.place.put(np.zeros((channels, channels), block.dtype))
    zeros = decoder.place.zeros((channels, weight.shape[0]))
    outputs = weighted_sum(zeros, zeros, 1.0, -1.0, dtype=block.dtype)
    statistics = InputStatistics(channels)
    statistics.update(inputs, inputs, outputs)
    layer = replace(_layer(block, settings), target="propagated")
    quantize_layers({stage[0]: weight}, statistics, layer)


def _score(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run what the proof of the output needs: the head's losses."""
    del block
    tokens = np.zeros((1, settings.sequence_length), np.int64)
    decoder.token_losses(_states(decoder, settings), tokens)


_PARTS: dict[str, Callable[[Decoder, DecoderBlock, Settings], None]] = {
    "attention": _attention,
    "mlp": _mlp,
    "hessian": _hessian,
    "panels": _panels,
    "columns": _columns,
    "factor": _factor,
    "sweep": _sweep,
    "search": _search,
    "measure": _measure,
    "solve": _solve,
    "target": _target,
    "score": _score,
}
"""Parts of a run."""


def _states(decoder: Decoder, settings: Settings) -> Any:
    """Hidden states of one sequence."""
    return decoder.place.zeros((1, settings.sequence_length, decoder.stream_size))


def _layer(block: DecoderBlock, settings: Settings) -> LayerSettings:
    return replace(settings, scale_dtype=block.dtype, target="layerwise")


def _orders(diagonals: Any, block: DecoderBlock, settings: Settings) -> Any:
    """Order of a layer's columns by the diagonals of its Hessian; None as they come."""
    channels = block.linears[block.stages[0][0]].shape[1]
    return column_orders(diagonals, settings.act_order, settings.group_size or channels)


def _statistics(place: Place, channels: int) -> InputStatistics:
    """Statistics made without the kernels that make others; what they hold means nothing."""
    statistics = InputStatistics(channels)
    statistics.tokens = TOKENS
    for name in ("hessian", "mean_abs", "max_abs"):
        setattr(statistics, name, place.zeros(getattr(statistics, name).shape))
    return statistics


def _storing(dtype: np.dtype, settings: Settings) -> None:
    """Run what the host does with quantized layers: pack and unpack codes, and decode them."""
    size = settings.group_size or 8
    codes, zeros = np.zeros((8, size), np.uint8), np.zeros((8, 1), np.uint8)
    scales = np.ones((8, 1), dtype)
    storing(QuantizedWeight(codes, scales, zeros, settings.bits, size, settings.symmetric))


def _zeros(checkpoint: Checkpoint, name: str) -> NDArray[Any]:
    """Zeros in the place of a weight, which takes long to read."""
    found = checkpoint.info(name)
    return np.zeros(found.shape, found.dtype)


def main() -> None:
    """Do what standard input orders."""
    order = pickle.loads(sys.stdin.buffer.read())
    checkpoint = open_checkpoint(order.model)
    if order.first:
        _storing(order.place.product_dtype(checkpoint.info(EMBEDDINGS).dtype), order.settings)
    launches = rehearse(order.facts)
    decoder = Decoder(checkpoint, partial(_zeros, checkpoint), order.place)
    block = decoder.block(0)
    for part in _parts(order.settings):
        with suppress(Exception):  # of results that mean nothing
            part(decoder, block, order.settings)
    from numbacalib.runtime import cubins

    for kernel, kinds, types in sorted(launches, key=lambda noted: -code_size(noted.kernel)):
        cubins.keep(kernel, kinds, types, order.facts.capability)


def _parts(settings: Settings) -> list[Callable[[Decoder, DecoderBlock, Settings], None]]:
    """Return the parts of a run with some settings."""
    left_out = () if settings.target == "propagated" else ("target",)
    return [part for name, part in _PARTS.items() if name not in left_out]


if __name__ == "__main__":
    main()
