"""CPU kernels of an MLP's activation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.jit import inlined, task_kernel
from numbacalib.runtime.tasks import fetch_add
from numbacalib.spec.activations import (
    GELU,
    GELU_TANH,
    RELU,
    SIGMOID,
    SILU,
    SQUARED_RELU,
    activated,
    clamped_swiglu,
)


def activate(x: NDArray, kind: int) -> None:
    """See `numbacalib.ops.activation.activate`; rows [N, M]."""
    _activate(len(x), carrier(x), kind)


def gate(x: NDArray, times: NDArray, kind: int) -> None:
    """See `numbacalib.ops.activation.activate`; rows [N, M]."""
    _gate(len(x), carrier(x), carrier(times), kind)


def gate_clamped(x: NDArray, times: NDArray, slope: np.float32, limit: np.float32) -> None:
    """See `numbacalib.ops.activation.activate_clamped`; rows [N, M]."""
    _gate_clamped(len(x), carrier(x), carrier(times), slope, limit)


@inlined
def _activate_row(kind, row):
    for j in range(len(row)):
        row[j] = narrow(activated(kind, np.float32(widen(row[j]))), row[j])


@inlined
def _gate_row(kind, row, other):
    for j in range(len(row)):
        value = activated(kind, np.float32(widen(row[j]))) * np.float32(widen(other[j]))
        row[j] = narrow(value, row[j])


@task_kernel
def _activate(counter, x, kind):
    """Split: workers take rows; a loop for each of most kinds, so that the compiler vectorizes it."""
    i = fetch_add(counter)
    while i < len(x):
        if kind == SILU:
            _activate_row(SILU, x[i])
        elif kind == GELU:
            _activate_row(GELU, x[i])
        elif kind == GELU_TANH:
            _activate_row(GELU_TANH, x[i])
        elif kind == RELU:
            _activate_row(RELU, x[i])
        elif kind == SQUARED_RELU:
            _activate_row(SQUARED_RELU, x[i])
        elif kind == SIGMOID:
            _activate_row(SIGMOID, x[i])
        else:
            _activate_row(kind, x[i])
        i = fetch_add(counter)


@task_kernel
def _gate(counter, x, times, kind):
    """Split: workers take rows; a loop for each of most kinds, so that the compiler vectorizes it."""
    i = fetch_add(counter)
    while i < len(x):
        if kind == SILU:
            _gate_row(SILU, x[i], times[i])
        elif kind == GELU:
            _gate_row(GELU, x[i], times[i])
        elif kind == GELU_TANH:
            _gate_row(GELU_TANH, x[i], times[i])
        elif kind == RELU:
            _gate_row(RELU, x[i], times[i])
        elif kind == SQUARED_RELU:
            _gate_row(SQUARED_RELU, x[i], times[i])
        elif kind == SIGMOID:
            _gate_row(SIGMOID, x[i], times[i])
        else:
            _gate_row(kind, x[i], times[i])
        i = fetch_add(counter)


@task_kernel
def _gate_clamped(counter, x, times, slope, limit):
    """Split: workers take rows."""
    i = fetch_add(counter)
    while i < len(x):
        row, other = x[i], times[i]
        for j in range(len(row)):
            gate, up = np.float32(widen(row[j])), np.float32(widen(other[j]))
            row[j] = narrow(clamped_swiglu(gate, up, slope, limit), row[j])
        i = fetch_add(counter)
