"""The activation of an MLP, gated or not."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.ops.activation import cpu
from numbacalib.runtime import checks
from numbacalib.runtime.backend import call
from numbacalib.spec import activations

ACTIVATIONS = {
    "silu": activations.SILU,
    "gelu": activations.GELU,
    "gelu_tanh": activations.GELU_TANH,
    "relu": activations.RELU,
    "squared_relu": activations.SQUARED_RELU,
    "sigmoid": activations.SIGMOID,
    "softplus": activations.SOFTPLUS,
    "identity": activations.IDENTITY,
}
"""Numbers of the activations of `numbacalib.spec.activations`, by name."""


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.activation import gpu

    return gpu


def activate(x: Any, name: str, times: Any = None) -> Any:
    """Replace `x` with its activation, computed in float32, and return it.

    Parameters
    ----------
    x : array [..., M], C-contiguous, float16, bfloat16 or float32
    name : str
        One of `ACTIVATIONS`.
    times : array [..., M], C-contiguous, of the same dtype, optional
        Factors of the activation: the up projection of a gated MLP whose gate is `x`.
    """
    kind = ACTIVATIONS[name]
    with call(cpu, _gpu, x=x, times=times) as (kernels, rows, others):
        if others is None:
            kernels.activate(checks.rows_of(rows), kind)
        else:
            kernels.gate(checks.rows_of(rows), checks.rows_of(others), kind)
    return x


def activate_clamped(gate: Any, up: Any, slope: float, limit: float) -> Any:
    """Replace the gate of a gated MLP with the clamped SwiGLU of GPT-OSS, and return it.

    See `numbacalib.spec.activations.clamped_swiglu`; it is computed in float32.

    Parameters
    ----------
    gate, up : arrays [..., M], C-contiguous, of one dtype: float16, bfloat16 or float32
    slope : float
        Of the sigmoid's argument.
    limit : float
        Of gate and up.
    """
    with call(cpu, _gpu, gate=gate, up=up) as (kernels, rows, others):
        numbers = np.float32(slope), np.float32(limit)
        kernels.gate_clamped(checks.rows_of(rows), checks.rows_of(others), *numbers)
    return gate
