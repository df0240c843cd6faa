"""Magnitudes of channels, from which AWQ computes its scales."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.ops.columns import magnitude_max, power_means
from numbacalib.ops.magnitudes import cpu
from numbacalib.runtime.backend import call

FLOAT32 = np.dtype(np.float32)


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.magnitudes import gpu

    return gpu


def channel_magnitudes(inputs: Any) -> tuple[Any, Any]:
    """``mean_n |x[n, j]|`` and ``max_n |x[n, j]|`` of inputs [N, K], float32 [K] each.

    Any of the four dtypes. A NaN or infinity in a channel shows in that channel's results.
    """
    return power_means(inputs, 1, FLOAT32), magnitude_max(inputs, FLOAT32)


def relative_magnitudes(weight: Any, group_size: int) -> Any:
    """``sum_i |W[i, j]| / max(|W[i, group of j]|)`` over the rows of a weight [M, K], float64 [K].

    A group of zeros adds zeros. Groups are runs of `group_size` channels.
    """
    with call(cpu, _gpu, weight=weight) as (kernels, weight):
        return kernels.relative_magnitudes(weight, group_size)
