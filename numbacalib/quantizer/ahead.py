"""GPU kernels compiled by processes beside a run's first block, where none are on disk yet.

A process compiles one kernel at a time, and a run needs some fifty. What it will need later is compiled by
others meanwhile: they run the same functions on a block of the same model, and leave the kernels on disk
(`numbacalib.runtime.cubins`), where the run finds them. What they fail to do, it does itself.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from numbacalib.methods import quantize_layers
from numbacalib.models import (
    EMBEDDINGS,
    Checkpoint,
    Decoder,
    DecoderBlock,
    Place,
    open_checkpoint,
    open_place,
)
from numbacalib.quantizer.settings import Settings
from numbacalib.runtime import kernel_files
from numbacalib.statistics import InputStatistics

LEAST_PROCESSORS = 8
"""Processors at least: with fewer the processes would stand in the run's way."""
TOKENS = 1 << 20
"""Tokens that are said to have been seen: enough for any layer."""


@dataclass(frozen=True)
class _Order:
    """Order of what a process is to do, as it is sent to it."""

    part: str
    model: str
    settings: Settings
    device: str


@contextmanager
def compiled_ahead(checkpoint: Checkpoint, settings: Settings, place: Place) -> Iterator[None]:
    """Compile beside what the ``with`` holds, and remember that it has been done if that ends well."""
    if place.name == "cpu" or not _are_kept() or (os.cpu_count() or 1) < LEAST_PROCESSORS:
        yield
        return
    name, identity = _mark(checkpoint, settings)
    if kernel_files.load(name, identity) is not None:
        yield
        return
    model = str(checkpoint.path)
    processes = [_started(_Order(part, model, settings, place.name)) for part in _PARTS]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
    kernel_files.store(name, identity, b"done")


def _are_kept() -> bool:
    """Return whether compiled kernels are kept on disk, and a process can be started that compiles some."""
    from numbacalib.runtime.device import PACKED

    return PACKED and bool(sys.executable)


def _mark(checkpoint: Checkpoint, settings: Settings) -> tuple[str, bytes]:
    """Name of the file that says that kernels of such runs are there, and what it depends on."""
    from numbacalib.runtime.cubins import versions

    options = settings.method, settings.ranges, settings.act_order, settings.static_groups
    model = checkpoint.info(EMBEDDINGS).dtype, checkpoint.config.architecture.model_type
    name = "-".join(["run", *map(str, (*model, *options)), settings.target, str(settings.refit)])
    return f"{name}.mark", repr(versions()).encode() + kernel_files.sources(Path(__file__))


def _started(order: _Order) -> subprocess.Popen[bytes]:
    """Start a process on an order; what it prints is of no use to anybody."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    process.stdin.write(pickle.dumps(order))
    process.stdin.close()
    return process


def _forward(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run what passes the text through a block."""
    shape = 1, settings.sequence_length, decoder.config.hidden_size
    block.forward(decoder.place.zeros(shape))


def _solve(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run what quantizes layers, and measures them."""
    for stage in (block.stages[0], block.stages[-1]):
        weights = {kind: block.linears[kind] for kind in stage}
        statistics = _statistics(decoder.place, weights[stage[0]].shape[1])
        layer = replace(settings, scale_dtype=block.dtype, target="layerwise")
        quantize_layers(weights, statistics, layer)


def _measure(decoder: Decoder, block: DecoderBlock, settings: Settings) -> None:
    """Run what measures layers, the solver's apart."""
    _solve(decoder, block, replace(settings, method="rtn", ranges="full"))


_PARTS: dict[str, Callable[[Decoder, DecoderBlock, Settings], None]] = {
    "forward": _forward,
    "solve": _solve,
    "measure": _measure,
}


def _statistics(place: Place, channels: int) -> InputStatistics:
    """Statistics of inputs that say nothing of each other, made without the kernels that make others."""
    statistics = InputStatistics(channels)
    statistics.tokens = TOKENS
    for name in ("hessian", "mean_abs", "max_abs"):
        shape = getattr(statistics, name).shape
        values: Any = np.eye(channels) if len(shape) == 2 else np.ones(channels)
        setattr(statistics, name, place.put(values.astype(np.float32)))
    return statistics


def main() -> None:
    """Do what standard input orders."""
    order = pickle.loads(sys.stdin.buffer.read())
    decoder = Decoder(open_checkpoint(order.model), place=open_place(order.device))
    _PARTS[order.part](decoder, decoder.block(0), order.settings)


if __name__ == "__main__":
    main()
