"""GPU kernels of an MLP's activation."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.runtime import device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.launch import launch
from numbacalib.spec.activations import activated, clamped_swiglu

THREADS = device.sized(256, simulated=4)
BATCH = device.sized(8, simulated=2)
"""Columns that a thread reads before it writes the first, so that its reads overlap."""


def activate(x: Any, kind: int) -> None:
    """See `numbacalib.ops.activation.activate`; rows [N, M]."""
    launch(_activate, x.shape[0], THREADS, carrier(x), kind)


def gate(x: Any, times: Any, kind: int) -> None:
    """See `numbacalib.ops.activation.activate`; rows [N, M]."""
    launch(_gate, x.shape[0], THREADS, carrier(x), carrier(times), kind)


def gate_clamped(x: Any, times: Any, slope: np.float32, limit: np.float32) -> None:
    """See `numbacalib.ops.activation.activate_clamped`; rows [N, M]."""
    launch(_gate_clamped, x.shape[0], THREADS, carrier(x), carrier(times), slope, limit)


@cuda.jit
def _activate(x, kind):
    """One block a row, its threads every `THREADS`-th column."""
    i = np.int64(cuda.blockIdx.x)
    for j in range(cuda.threadIdx.x, x.shape[1], THREADS):
        x[i, j] = narrow(activated(kind, np.float32(widen(x[i, j]))), x[i, j])


@cuda.jit
def _gate(x, times, kind):
    """One block a row, its threads every `THREADS`-th column."""
    gates = cuda.local.array(BATCH, np.float32)
    factors = cuda.local.array(BATCH, np.float32)
    i, columns = np.int64(cuda.blockIdx.x), x.shape[1]
    for first in range(cuda.threadIdx.x, columns, BATCH * THREADS):
        for k in range(BATCH):
            j = min(first + k * THREADS, columns - 1)
            gates[k], factors[k] = widen(x[i, j]), widen(times[i, j])
        for k in range(BATCH):
            j = first + k * THREADS
            if j < columns:
                x[i, j] = narrow(activated(kind, gates[k]) * factors[k], x[i, j])


@cuda.jit
def _gate_clamped(x, times, slope, limit):
    """One block a row, its threads every `THREADS`-th column."""
    i = np.int64(cuda.blockIdx.x)
    for j in range(cuda.threadIdx.x, x.shape[1], THREADS):
        gate, up = np.float32(widen(x[i, j])), np.float32(widen(times[i, j]))
        x[i, j] = narrow(clamped_swiglu(gate, up, slope, limit), x[i, j])
