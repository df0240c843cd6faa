"""The gated activation of SwiGLU."""

from __future__ import annotations

from typing import Any

from numbacalib.ops.gated_silu import cpu
from numbacalib.runtime import checks
from numbacalib.runtime.backend import call


def _gpu() -> Any:
    """The twin that stands on CUDA."""
    from numbacalib.ops.gated_silu import gpu

    return gpu


def gated_silu(gate: Any, up: Any) -> Any:
    """Replace `gate` by ``gate / (1 + exp(-gate)) * up``, computed in float32, and return it.

    Both are C-contiguous arrays [..., M] of one dtype, float16, bfloat16 or float32.
    """
    with call(cpu, _gpu, gate=gate, up=up) as (kernels, rows, others):
        kernels.gated_silu(checks.rows_of(rows), checks.rows_of(others))
    return gate
