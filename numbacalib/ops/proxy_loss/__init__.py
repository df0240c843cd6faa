"""The squared error of a layer's outputs, and other traces of two weights and a moment of its inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numbacalib.ops.proxy_loss import cpu
from numbacalib.runtime.backend import call


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.proxy_loss import gpu

    return gpu


def start_trace_of_errors(
    weight: Any, values: Any, hessian: Any, channel_scales: Any = None
) -> Callable[[], float]:
    """Start computing ``trace(D H D^T)``; return a function that waits for it.

    ``D = (weight - values) / channel_scales``, in float32.

    Parameters
    ----------
    weight, values : arrays [M, K]
        `values` is float32.
    hessian : array [K, K]
        Sums are float64 if it is.
    channel_scales : array [K], optional
    """
    arrays = {
        "weight": weight,
        "values": values,
        "hessian": hessian,
        "channel_scales": channel_scales,
    }
    with call(cpu, _gpu, **arrays) as (kernels, weight, values, hessian, channel_scales):
        return kernels.start_trace_of_errors(weight, values, hessian, channel_scales)


def start_trace_of_products(left: Any, moment: Any, right: Any) -> Callable[[], float]:
    """Start ``trace(left moment right^T)``, float32; return a function that waits for it.

    Of matrices [M, K], [K, K] and [M, K]. On a GPU a large `right` is rounded to float16, each row with its
    own scale: such roundings are of either sign, and cancel.
    """
    with call(cpu, _gpu, left=left, moment=moment, right=right) as (kernels, *arrays):
        return kernels.start_trace_of_products(*arrays)
