"""CPU kernel of SwiGLU's activation."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.jit import kernel
from numbacalib.spec.decoder import gated


def gated_silu(gate: NDArray, up: NDArray) -> None:
    """See `numbacalib.ops.gated_silu.gated_silu`."""
    _gate(carrier(gate), carrier(up))


@kernel
def _gate(gate, up):
    """Split: one task a row."""
    for i in prange(len(gate)):
        row, other = gate[i], up[i]
        for j in range(len(row)):
            value = gated(np.float32(widen(row[j])), np.float32(widen(other[j])))
            row[j] = narrow(value, row[j])
