"""Causal softmax attention with grouped heads."""

from __future__ import annotations

from typing import Any

from numbacalib.ops.attention import cpu
from numbacalib.runtime.backend import call


def _gpu() -> Any:
    """The twin that stands on CUDA."""
    from numbacalib.ops.attention import gpu

    return gpu


def attention(queries: Any, keys: Any, values: Any, window: int | None = None) -> Any:
    """Attend from each position of a sequence to itself and those before it.

    ``softmax(q k^T / sqrt(D)) v``, computed in float32 and with memory that does not grow with the
    square of T: by parts of the keys, as Milakov and Gimelshein (2018), arXiv 1805.02867.

    Parameters
    ----------
    queries : array [S, T, H, D], C-contiguous
        S sequences of T tokens; float32, or on a GPU float16 or bfloat16 too. Rotated, not yet scaled.
    keys, values : arrays [S, T, H', D], C-contiguous, of the same dtype
        H' divides H; query head h reads key head ``h // (H / H')``.
    window : int, optional
        Attend to the last `window` positions only, the token's own included.

    Returns
    -------
    array [S, T, H, D], of the same dtype
    """
    with call(cpu, _gpu, queries=queries, keys=keys, values=values) as (kernels, q, k, v):
        return kernels.attention(q, k, v, window or 0)
