"""GPU kernels compiled by worker processes beside a run's first block, if none are on disk yet.

A process compiles one kernel at a time, and a run needs some sixty. Workers compile ahead of it: without a
device, each rehearses the same functions on a block of the same model (`numbacalib.runtime.rehearsal`), and
compiles the launched kernels that no other process is compiling, the longest first. They go to disk
(`numbacalib.runtime.cubins`), where the run finds them or waits for one in progress. The run compiles what
the workers fail to.
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
from numbacalib.models.key_values import KeyValues
from numbacalib.ops import sampling
from numbacalib.ops.magnitudes import channel_magnitudes
from numbacalib.ops.matrix import column_range, diagonals, weighted_sum
from numbacalib.quantizer.divergence import compare
from numbacalib.quantizer.settings import Settings
from numbacalib.quantizer.stages import require_range
from numbacalib.quantizer.trial import storing
from numbacalib.runtime import checks, kernel_files
from numbacalib.runtime.backend import arrays_of_one_device
from numbacalib.runtime.identity import code_size
from numbacalib.runtime.rehearsal import Facts, facts_of_device, rehearse
from numbacalib.statistics import InputStatistics

LEAST_PROCESSORS = 8
"""Fewest processors to compile ahead with: with fewer, the workers would slow the run down."""
MOST_PROCESSES = 12
"""More would only wait for the longest compilation."""
TOKENS = 1 << 20
"""Token count of the rehearsed statistics: enough for any layer."""


@dataclass(frozen=True)
class _Order:
    """Work order for a worker process."""

    model: str
    settings: Settings
    place: Place
    facts: Facts
    first: bool
    """Compile the host's functions too; only one process does."""


class CompiledAhead:
    """Worker processes that compile beside a run, ended by the ``with`` statement.

    A successful run leaves a mark on disk. Without a mark of such runs the workers start at once: both they
    and a device take a second to start.

    Parameters
    ----------
    checkpoint : Checkpoint
    settings : Settings
    device : str
        Device requested for the run.
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
        """Send the processes their orders for a run at a place, or end them if nothing is to compile."""
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
        """Name of the file that marks the kernels of such runs as compiled."""
        checkpoint, settings = self._checkpoint, self._settings
        options = settings.method, settings.ranges, settings.act_order, settings.static_groups
        model = checkpoint.info(EMBEDDINGS).dtype, checkpoint.config.architecture.model_type
        improved = settings.target, settings.refits, settings.descents, bool(settings.own_text)
        return "-".join(["run", *map(str, (*model, *options, *improved))]) + ".mark"

    def _start(self) -> None:
        processors = _processors()
        if processors >= LEAST_PROCESSORS:
            count = min(MOST_PROCESSES, processors * 3 // 4)
            self._processes = [_started() for _ in range(count)]

    def _end(self) -> None:
        for process in self._processes:
            with process:  # waits on exit
                process.kill()  # no other process needs its state
        self._processes = []


def _has_device() -> bool:
    """Return whether there is a GPU, before the libraries that compute on it are loaded."""
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
    """Return whether compiled kernels are kept on disk and worker processes can be started."""
    from numbacalib.runtime.device import PACKED

    return PACKED and bool(sys.executable)


def _identity() -> bytes:
    """Return the versions and sources that compiled kernels depend on."""
    from numbacalib.runtime.cubins import versions

    return repr(versions()).encode() + kernel_files.sources(Path(__file__))


def _started() -> subprocess.Popen[bytes]:
    """Start a process that waits for an order; its output is discarded."""
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
    """Run the forward pass of attention."""
    block.attention.forward(_states(decoder, settings))


def _mlp(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run the forward pass of the MLP."""
    block.mlp.forward(_states(decoder, settings))


def _hessian(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run the collection of statistics."""
    shape = settings.sequence_length, decoder.config.hidden_size
    inputs = decoder.place.put(np.zeros(shape, block.dtype))
    InputStatistics(decoder.config.hidden_size).update(inputs)


def _columns(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run the reductions over columns, of statistics and of the residual stream."""
    states = _states(decoder, settings)
    channel_magnitudes(checks.rows_of(block.attention.input(states)))
    require_range(block.name, states)


def _factor(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run the factorization of a Hessian."""
    hessian = _statistics(decoder.place, decoder.config.hidden_size).hessian
    with arrays_of_one_device(hessian=hessian) as (hessian,):
        hessians = checks.stack_of_one(hessian)
        orders = _orders(hessians, block, settings)
        order = None if orders is None else orders.order
        factors = factor_hessians(
            hessians, [settings.percdamp], dtype=np.dtype(np.float32), orders=order
        )
        diagonals(factors.upper)


def _panels(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run the factorization of the Hessian of a block's last layer, which is large and goes in panels."""
    channels = block.linears[block.stages[-1][0]].shape[1]
    hessian = decoder.place.zeros((channels, channels))
    factor_hessians(checks.stack_of_one(hessian), [settings.percdamp])


def _sweep(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run the sweep that quantizes columns with a factor."""
    weight = block.linears[block.stages[0][0]]
    rows, channels = weight.shape
    upper = decoder.place.zeros((channels, channels))
    with arrays_of_one_device(weight=weight, upper=upper) as (weight, upper):
        grid = grid_settings(weight, AskedGrid(**grid_options(_layer(block, settings))))
        stack = checks.stack_of_one(upper)
        orders = _orders(stack, block, settings)
        sweep((weight, weight), stack, orders, grid, settings.static_groups, [rows])


def _search(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run the search for scales and the decoding of codes."""
    layer = _layer(block, settings)
    weight = block.linears[block.stages[0][0]]
    statistics = _statistics(decoder.place, weight.shape[1])
    options = searched_options(layer)
    if settings.ranges == "weighted":
        options["importance"] = statistics.mean_square
    rtn(weight, **options).dequantize(block.dtype)


def _measure(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run the measurement of layers, without the solver."""
    _solve(decoder, block, replace(settings, method="rtn", ranges="full"))


def _solve(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run the whole quantization of layers, for the kernels that the other parts leave out."""
    for stage in (block.stages[0], block.stages[-1]):
        weights = {kind: block.linears[kind] for kind in stage}
        statistics = _statistics(decoder.place, weights[stage[0]].shape[1])
        quantize_layers(weights, statistics, _layer(block, settings))


def _target(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run the solver on a propagated target, which is float32, with the losses to it."""
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
    """Run the head's losses and the divergence, which the proof of the output needs, and draw tokens."""
    del block
    tokens = np.zeros((1, settings.sequence_length), np.int64)
    states = _states(decoder, settings)
    sampling.add_scores(states[0], 0, 0, 0, sampling.new_state(settings.sequence_length, states))
    compare(decoder, states, decoder, states, tokens)


def _writing(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run a block on tokens one after the other, whose keys and values are held, as own text is written."""
    before = KeyValues()
    for length in (2, 1):
        states = decoder.place.zeros((2, length, decoder.stream_size))
        block.forward(states, before)
    column_range(checks.rows_of(states), 0, decoder.stream_size)


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
    "writing": _writing,
}
"""Parts of a run."""


def _states(decoder: Decoder, settings: Settings) -> Any:
    """Hidden states of one sequence."""
    return decoder.place.zeros((1, settings.sequence_length, decoder.stream_size))


def _layer(block: DecoderBlock, settings: Settings) -> LayerSettings:
    return replace(settings, scale_dtype=block.dtype, target="layerwise")


def _orders(hessians: Any, block: DecoderBlock, settings: Settings) -> Any:
    """Order of a layer's columns by the diagonal of its Hessian; None for their stored order."""
    channels = block.linears[block.stages[0][0]].shape[1]
    return column_orders(hessians, settings.act_order, settings.group_size or channels)


def _statistics(place: Place, channels: int) -> InputStatistics:
    """Statistics built without launching kernels; their values mean nothing."""
    statistics = InputStatistics(channels)
    statistics.tokens = TOKENS
    for name in ("hessian", "mean_abs", "max_abs"):
        setattr(statistics, name, place.zeros(getattr(statistics, name).shape))
    return statistics


def _storing(dtype: np.dtype, settings: Settings) -> None:
    """Run the host's work on quantized layers: packing, unpacking and decoding of codes."""
    size = settings.group_size or 8
    codes, zeros = np.zeros((8, size), np.uint8), np.zeros((8, 1), np.uint8)
    scales = np.ones((8, 1), dtype)
    storing(QuantizedWeight(codes, scales, zeros, settings.bits, size, settings.symmetric))


def _zeros(checkpoint: Checkpoint, name: str) -> NDArray[Any]:
    """Zeros in place of a weight, which would take long to read."""
    found = checkpoint.info(name)
    return np.zeros(found.shape, found.dtype)


def main() -> None:
    """Carry out the order on standard input."""
    order = pickle.loads(sys.stdin.buffer.read())
    checkpoint = open_checkpoint(order.model)
    if order.first:
        _storing(order.place.product_dtype(checkpoint.info(EMBEDDINGS).dtype), order.settings)
    launches = rehearse(order.facts)
    decoder = Decoder(checkpoint, partial(_zeros, checkpoint), order.place)
    block = decoder.block(0)
    for part in _parts(order.settings):
        with suppress(Exception):  # zeros may fail any check
            part(decoder, block, order.settings)
    from numbacalib.runtime import cubins

    for kernel, kinds, types in sorted(launches, key=lambda noted: -code_size(noted.kernel)):
        cubins.keep(kernel, kinds, types, order.facts.capability)


def _parts(settings: Settings) -> list[Callable[[Decoder, DecoderBlock, Settings], None]]:
    """Return the parts of a run with these settings."""
    left_out = set()
    if settings.target != "propagated":
        left_out.add("target")
    if not settings.own_text:
        left_out.add("writing")
    return [part for name, part in _PARTS.items() if name not in left_out]


if __name__ == "__main__":
    main()
