"""CPU kernels of an MLP's activation."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.jit import kernel
from numbacalib.spec.activations import activated


def activate(x: NDArray, kind: int) -> None:
    """See `numbacalib.ops.activation.activate`; rows [N, M]."""
    _activate(carrier(x), kind)


def gate(x: NDArray, times: NDArray, kind: int) -> None:
    """See `numbacalib.ops.activation.activate`; rows [N, M]."""
    _gate(carrier(x), carrier(times), kind)


@kernel
def _activate(x, kind):
    """Split: one task a row."""
    for i in prange(len(x)):
        row = x[i]
        for j in range(len(row)):
            row[j] = narrow(activated(kind, np.float32(widen(row[j]))), row[j])


@kernel
def _gate(x, times, kind):
    """Split: one task a row."""
    for i in prange(len(x)):
        row, other = x[i], times[i]
        for j in range(len(row)):
            value = activated(kind, np.float32(widen(row[j]))) * np.float32(widen(other[j]))
            row[j] = narrow(value, row[j])
