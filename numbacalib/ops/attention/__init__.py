"""Causal softmax attention with grouped heads."""

from __future__ import annotations

import math
from typing import Any

from numbacalib.ops.attention import cpu
from numbacalib.runtime.backend import call


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.attention import gpu

    return gpu


def attention(
    queries: Any,
    keys: Any,
    values: Any,
    window: int | None = None,
    *,
    scale: float | None = None,
    cap: float = 0.0,
    sinks: Any = None,
) -> Any:
    """Attend from each position of a sequence to itself and those before it.

    ``softmax(scale q k^T) v``, computed in float32 by parts of the keys, as Milakov and Gimelshein (2018),
    arXiv 1805.02867, so that memory does not grow with the square of T.

    Parameters
    ----------
    queries : array [S, T, H, D], C-contiguous
        S sequences of T tokens; float32, or on a GPU float16 or bfloat16 too. Rotated, not yet scaled.
    keys, values : arrays [S, T, H', D] and [S, T, H', V], C-contiguous, of the same dtype
        H' divides H; query head h reads key head ``h // (H / H')``.
    window : int, optional
        Attend to the last `window` positions only, the token's own included.
    scale : float, optional
        Factor of the scores, ``1 / sqrt(D)`` by default.
    cap : float, default 0
        Scaled scores s become ``cap * tanh(s / cap)`` (Gemma 2, arXiv 2408.00118, section 2); none for 0.
    sinks : float32 array [H], optional
        An additional score of each head in its softmaxes, without a value (as in GPT-OSS, arXiv
        2508.10925; Xiao et al. (2023), arXiv 2309.17453).

    Returns
    -------
    array [S, T, H, V], of the same dtype
    """
    with call(cpu, _gpu, queries=queries, keys=keys, values=values, sinks=sinks) as (
        kernels, q, k, v, sinks,
    ):  # fmt: skip
        *_, size = q.shape
        scale = 1 / math.sqrt(size) if scale is None else scale
        return kernels.attention(q, k, v, window or 0, scale, cap, sinks)
