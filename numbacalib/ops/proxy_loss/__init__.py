"""The squared error of a layer's outputs, from the Hessian of its inputs."""

from __future__ import annotations

from typing import Any

from numbacalib.ops.proxy_loss import cpu
from numbacalib.runtime.backend import call


def _gpu() -> Any:
    """The twin that stands on CUDA."""
    from numbacalib.ops.proxy_loss import gpu

    return gpu


def trace_of_errors(weight: Any, values: Any, hessian: Any, channel_scales: Any = None) -> float:
    """``trace(D H D^T)`` with ``D = (weight - values) / channel_scales`` in float32.

    Parameters
    ----------
    weight, values : arrays [M, K]
        `values` is float32.
    hessian : array [K, K]
        Sums are float64 where it is.
    channel_scales : array [K], optional
    """
    arrays = {
        "weight": weight,
        "values": values,
        "hessian": hessian,
        "channel_scales": channel_scales,
    }
    with call(cpu, _gpu, **arrays) as (kernels, weight, values, hessian, channel_scales):
        return kernels.trace_of_errors(weight, values, hessian, channel_scales)
