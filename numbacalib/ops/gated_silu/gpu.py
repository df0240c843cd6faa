"""GPU kernel of SwiGLU's activation."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.runtime import device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.launch import launch
from numbacalib.spec.decoder import gated

THREADS = 4 if device.SIMULATED else 256


def gated_silu(gate: Any, up: Any) -> None:
    """See `numbacalib.ops.gated_silu.gated_silu`."""
    launch(_gate, gate.shape[0], THREADS, carrier(gate), carrier(up))


@cuda.jit
def _gate(gate, up):
    """One block a row, its threads every `THREADS`-th column."""
    i = np.int64(cuda.blockIdx.x)
    for j in range(cuda.threadIdx.x, gate.shape[1], THREADS):
        value = gated(np.float32(widen(gate[i, j])), np.float32(widen(up[i, j])))
        gate[i, j] = narrow(value, gate[i, j])
