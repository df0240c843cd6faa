"""Rotary position embedding of queries and keys."""

from __future__ import annotations

from typing import Any

from numbacalib.ops.rotary import cpu
from numbacalib.runtime.backend import call


def _gpu() -> Any:
    """The twin that stands on CUDA."""
    from numbacalib.ops.rotary import gpu

    return gpu


def rotate(heads: Any, cos: Any, sin: Any) -> None:
    """Turn heads [S, T, H, D] in place, each by its position: dimension i pairs with ``i + D / 2``.

    Parameters
    ----------
    heads : array [S, T, H, D], C-contiguous, float16, bfloat16 or float32
    cos, sin : float32 arrays [T, D / 2]
        Cosines and sines at each position.
    """
    with call(cpu, _gpu, heads=heads, cos=cos, sin=sin) as (kernels, heads, cos, sin):
        sequences, length, count, size = heads.shape
        kernels.rotate(heads.reshape(sequences * length, count * size), cos, sin)
