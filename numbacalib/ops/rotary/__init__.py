"""Rotary position embedding of queries and keys."""

from __future__ import annotations

from typing import Any

from numbacalib.ops.rotary import cpu
from numbacalib.runtime.backend import call


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.rotary import gpu

    return gpu


def rotate(heads: Any, cos: Any, sin: Any, *, interleaved: bool = False, first: int = 0) -> None:
    """Rotate R dimensions of heads [S, T, H, D] in place, each head by its position.

    Parameters
    ----------
    heads : array [S, T, H, D], C-contiguous, float16, bfloat16 or float32
    cos, sin : float32 arrays [T, R / 2]
        Cosines and sines at each position.
    interleaved : bool, default False
        Pair dimension 2i with 2i + 1, instead of i with ``i + R / 2``.
    first : int, default 0
        The first dimension of the R; those before and after them stay.
    """
    with call(cpu, _gpu, heads=heads, cos=cos, sin=sin) as (kernels, heads, cos, sin):
        sequences, length, count, size = heads.shape
        tokens = heads.reshape(sequences * length, count * size)
        kernels.rotate(tokens, size, cos, sin, interleaved, first)
