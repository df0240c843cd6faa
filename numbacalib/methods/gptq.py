"""GPTQ of a layer, from its weight and its Hessian; of layers that share one, and of equal layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from numbacalib.methods.quantized_weight import QuantizedWeight
from numbacalib.methods.settings import (
    AskedGrid,
    GridArrays,
    delivery,
    grid_settings,
    pending_checks,
    results,
)
from numbacalib.methods.solver import Layers, Solver, solve
from numbacalib.ops.matrix import joined_rows, stacked_rows, take
from numbacalib.runtime import checks
from numbacalib.runtime.alone import each_alone
from numbacalib.runtime.array import ArrayT
from numbacalib.runtime.backend import arrays_of_one_device, is_cuda_array
from numbacalib.runtime.finite import start_finite_check
from numbacalib.spec.grid import INTEGER
from numbacalib.spec.range_search import RangeSearch

BATCH_BYTES = 4 << 30
"""Bytes of float32 Hessians that a GPU solves together, with factors and couplings of the same size."""


def gptq(
    weight: ArrayT,
    hessian: ArrayT,
    *,
    bits: int,
    group_size: int | None = 128,
    symmetric: bool = False,
    scale_dtype: DTypeLike = np.float16,
    search: RangeSearch | None = None,
    importance: ArrayT | None = None,
    percdamp: float = 0.01,
    damping_tries: int = 5,
    shrinkage: float = 0.0,
    act_order: str = "none",
    static_groups: bool = False,
    scales: ArrayT | None = None,
    zeros: ArrayT | None = None,
    element: str = INTEGER,
    signed: bool = False,
    out: Sequence[ArrayT | None] | None = None,
    wait: bool = True,
) -> QuantizedWeight[ArrayT]:
    """Quantize a weight by GPTQ, without inverting the Hessian.

    NumPy arrays give NumPy arrays, CUDA arrays of any library give Numba device arrays, on the stream
    that they are made on.

    Parameters
    ----------
    weight : array [M, K], float16, bfloat16, float32 or float64
    hessian : array [K, K]
        As `gptq_hessian_update` accumulates it; its scale does not matter.
    bits : int
        2 to 8.
    group_size : int or None, default 128
        Input channels that share a scale; divides K. None is one scale a row.
    symmetric : bool, default False
    scale_dtype : dtype, default float16
        Dtype that stores the scales; codes are chosen against the rounded scales.
    search : RangeSearch, optional
        Clip each group's range where that loses less; by default the grid spans all its weights.
    importance : array [K] or [M, K], optional
        Weights of the search's errors, such as ``np.diagonal(hessian)``.
    percdamp : float, default 0.01
        Damping, as a fraction of the mean of the Hessian's diagonal, 0 to 1e6.
    damping_tries : int, default 5
        Factorisations to try: after each that fails, damping grows fourfold. With 1 a failure raises.
    shrinkage : float, default 0
        Share, 0 to 1, by which the Hessian moves toward its diagonal first: the remedy for fewer
        tokens than channels. See `numbacalib.methods.shrinkage_for`.
    act_order : "none", "desc" or "group_aware", default "none"
        Order of the columns: see `numbacalib.methods.order.column_orders`. With "desc" alone, groups
        are runs in that order and the result has a `g_idx`; with `static_groups`, or with
        "group_aware", they stay runs of channels.
    static_groups : bool, default False
        Find all scales from the original weights, before any is compensated.
    scales, zeros : arrays [M, G], optional
        Grids that a format, or a caller, has fixed: scales in `scale_dtype`, of any sign but not 0, and
        zeros for unsigned codes, uint8 or real numbers, none with `symmetric`.
        ``value = (code - zero) * scale`` with codes in ``[0, 2 ** bits - 1]``.
    element : "int" or "e2m1", default "int"
        Kind of the codes: integers, or floating-point numbers of 4 bits on a symmetric grid, such as those
        of NVFP4 and MXFP4: see `fp4_scales`, which finds scales as these store them.
    signed : bool, default False
        Return codes and zeros less ``2 ** (bits - 1)``, int8, as some formats and kernels have them.
    out : sequence of three arrays or None, optional
        Arrays for codes [M, K], uint8 or int8, scales [M, G] in `scale_dtype`, and zeros [M, G] of the
        codes' dtype, or float32 if given ones are real; C-contiguous and not overlapping. Those that
        are None are allocated.
    wait : bool, default True
        False lets a call on a GPU return before the device is done, without a report, after one
        factorisation. `QuantizedWeight.check` then waits, and raises the errors about values that the
        call would have raised: the codes are valid once it did not raise. On NumPy arrays it changes
        nothing.

    Returns
    -------
    QuantizedWeight
        With a `GptqReport`.

    Raises
    ------
    ValueError, TypeError
        If a setting does not fit, a value is not finite (the first index is named), or the arrays are
        on different devices.
    numpy.linalg.LinAlgError
        If the damped Hessian is not positive definite after all tries.

    Notes
    -----
    Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers" (2022); `quantize_direct` has the form without an inverse.

    Examples
    --------
    Correlated inputs let the second 3.4 make up for the first:

    >>> import numpy as np
    >>> from numbacalib.methods import gptq
    >>> hessian = np.full((4, 4), 0.9, np.float32)
    >>> np.fill_diagonal(hessian, 1)
    >>> weight = np.array([[0, 3.4, 3.4, 15]], np.float32)
    >>> quantized = gptq(weight, hessian, bits=4, group_size=None)
    >>> quantized.codes
    array([[ 0,  3,  4, 15]], dtype=uint8)
    >>> quantized.report.tries, quantized.report.dead
    (1, 0)
    """
    solver = Solver(percdamp, damping_tries, shrinkage, act_order, static_groups)
    arrays = {"weight": weight, "hessian": hessian}
    options = {"importance": importance, "scales": scales, "zeros": zeros} | results(out)
    with arrays_of_one_device(**arrays, **options) as (weight, hessian, *given):
        later = pending_checks(wait, weight)
        settings = grid_settings(
            weight,
            AskedGrid(bits, group_size, symmetric, scale_dtype, element, search),
            GridArrays(*given[:3]),
            delivery=delivery(signed, given[3:]),
            later=later,
        )
        channels = weight.shape[1]
        checks.matrix("hessian", hessian, (channels, channels))
        unchecked = {"hessian": hessian, "weight": weight}
        stack = checks.stack_of_one(hessian)
        layers = Layers(weight, stack, [weight.shape[0]], ["hessian"], unchecked)
        return solve(layers, settings, solver, later)[0]


def gptq_shared(
    weights: Mapping[str, ArrayT],
    hessian: ArrayT,
    *,
    bits: int,
    group_size: int | None = 128,
    symmetric: bool = False,
    scale_dtype: DTypeLike = np.float16,
    search: RangeSearch | None = None,
    importance: ArrayT | None = None,
    percdamp: float = 0.01,
    damping_tries: int = 5,
    shrinkage: float = 0.0,
    act_order: str = "none",
    static_groups: bool = False,
    scales: Mapping[str, ArrayT] | None = None,
    zeros: Mapping[str, ArrayT] | None = None,
    element: str = INTEGER,
) -> dict[str, QuantizedWeight[ArrayT]]:
    """Quantize layers that share an input, and so a Hessian, which is factored once, each as by `gptq`.

    Parameters
    ----------
    weights : mapping of str to array [M_i, K]
        Of one dtype. Errors name a weight by its key, which must not be "hessian" or "importance".
    hessian : array [K, K]
    bits, group_size, symmetric, scale_dtype, search
        As in `gptq`.
    importance : array [K], optional
    percdamp, damping_tries, shrinkage, act_order, static_groups
        As in `gptq`.
    scales, zeros : mappings of str to array [M_i, G], optional
        Of each weight, as in `gptq`.
    element
        As in `gptq`.

    Returns
    -------
    dict of str to QuantizedWeight
        Each with a `GptqReport`.

    Raises
    ------
    ValueError, TypeError, numpy.linalg.LinAlgError
        As `gptq`.

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib.methods import gptq, gptq_shared
    >>> hessian = np.eye(8, dtype=np.float32)
    >>> query = np.linspace(-1, 1, 24, dtype=np.float32).reshape(3, 8)
    >>> found = gptq_shared({"q_proj": query, "k_proj": query[:2]}, hessian, bits=4, group_size=8)
    >>> found["q_proj"] == gptq(query, hessian, bits=4, group_size=8)
    True
    """
    solver = Solver(percdamp, damping_tries, shrinkage, act_order, static_groups)
    fixed = {"scales": scales, "zeros": zeros}
    others = {"hessian": hessian, "importance": importance}
    if taken := others.keys() & weights:
        raise ValueError(
            f"weights: expected other keys than those of arguments, got {min(taken)!r}"
        )
    with arrays_of_one_device(**others, **weights) as (hessian, importance, *matrices):
        channels = checks.square("hessian", hessian)
        for name, matrix in zip(weights, matrices, strict=True):
            checks.matrix(name, matrix, ("M", channels))
        joined = joined_rows(matrices)
        grids = [_joined_grids(name, grid, list(weights)) for name, grid in fixed.items()]
        asked = AskedGrid(bits, group_size, symmetric, scale_dtype, element, search)
        settings = grid_settings(joined, asked, GridArrays(importance, *grids))
        unchecked = {"hessian": hessian} | dict(zip(weights, matrices, strict=True))
        stack = checks.stack_of_one(hessian)
        layers = Layers(joined, stack, list(map(len, matrices)), ["hessian"], unchecked)
        return dict(zip(weights, solve(layers, settings, solver), strict=True))


def gptq_batch(
    weights: ArrayT,
    hessians: ArrayT,
    *,
    bits: int,
    group_size: int | None = 128,
    symmetric: bool = False,
    scale_dtype: DTypeLike = np.float16,
    search: RangeSearch | None = None,
    importance: ArrayT | None = None,
    percdamp: float = 0.01,
    damping_tries: int = 5,
    shrinkage: float | Sequence[float] = 0.0,
    act_order: str = "none",
    static_groups: bool = False,
    scales: ArrayT | None = None,
    zeros: ArrayT | None = None,
    element: str = INTEGER,
    signed: bool = False,
    out: Sequence[ArrayT | None] | None = None,
    wait: bool = True,
) -> list[QuantizedWeight[ArrayT]]:
    """Quantize layers of one shape, such as a model's experts, each with its own Hessian, as by `gptq`.

    On a GPU every step is one launch for many layers, as many as `BATCH_BYTES` hold, since one alone does
    not keep it busy. On the CPU each layer is solved on one thread, as many at a time as there are
    threads: `numbacalib.runtime.alone`.

    Parameters
    ----------
    weights : array [E, M, K], float16, bfloat16, float32 or float64
    hessians : array [E, K, K]
    bits, group_size, symmetric, scale_dtype, search
        As in `gptq`.
    importance : array [E, K] or [E, M, K], optional
    percdamp, damping_tries
        As in `gptq`.
    shrinkage : float or sequence of E floats
        As in `gptq`: of all layers, or of each.
    act_order, static_groups
        As in `gptq`.
    scales, zeros : arrays [E, M, G], optional
    element, signed
        As in `gptq`.
    out : sequence of three arrays or None, optional
        As in `gptq`, with E before the other axes.
    wait
        As in `gptq`.

    Returns
    -------
    list of QuantizedWeight
        One a layer, with a `GptqReport` each.

    Raises
    ------
    ValueError, TypeError, numpy.linalg.LinAlgError
        As `gptq`.

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib.methods import gptq, gptq_batch
    >>> weights = np.linspace(-1, 1, 48, dtype=np.float32).reshape(2, 3, 8)
    >>> hessians = np.stack([np.eye(8, dtype=np.float32)] * 2)
    >>> first, second = gptq_batch(weights, hessians, bits=4, group_size=8)
    >>> second == gptq(weights[1], hessians[1], bits=4, group_size=8)
    True
    """
    solver = Solver(percdamp, damping_tries, shrinkage, act_order, static_groups)
    arrays = {"weights": weights, "hessians": hessians, "importance": importance}
    fixed: dict[str, Any] = {"scales": scales, "zeros": zeros}
    outs: dict[str, Any] = results(out)
    with arrays_of_one_device(**arrays, **fixed, **outs) as (weights, hessians, importance, *given):
        count, rows, channels = checks.stack("weights", weights, ("E", "M", "K"))
        checks.stack("hessians", hessians, (count, channels, channels))
        shares = solver.shares(count)
        later = pending_checks(wait, weights)
        weight, hessian = stacked_rows(weights), stacked_rows(hessians)
        on_gpu = is_cuda_array(weights)
        unchecked = {
            "weights": weight.reshape(count, rows, channels),
            "hessians": hessian.reshape(count, channels, channels),
        }
        started = []
        if later is not None or not on_gpu:
            started = [start_finite_check(unchecked)]
            unchecked = {}
        errors = _importance_of_rows(importance, count, rows, channels)
        given = [
            _stack_of_rows(name, array, count)
            for name, array in zip((*fixed, *outs), given, strict=True)
        ]
        asked = AskedGrid(bits, group_size, symmetric, scale_dtype, element, search)
        size = max(1, BATCH_BYTES // (4 * channels * channels)) if on_gpu else 1

        def solve_from(first: int) -> list[QuantizedWeight]:
            last = min(first + size, count)
            run = slice(first * rows, last * rows)
            own = [None if array is None else array[run] for array in (errors, *given)]
            pending = None if later is None else list(started)
            settings = grid_settings(
                weight[run],
                asked,
                GridArrays(*own[:3]),
                delivery=delivery(signed, own[3:]),
                later=pending,
            )
            stack = hessian[first * channels : last * channels].reshape(-1, channels, channels)
            names = [f"hessians[{e}]" for e in range(first, last)]
            # a GPU checks all values while it solves the first layers
            own_checks = {} if first else unchecked
            layers = Layers(weight[run], stack, [rows] * (last - first), names, own_checks)
            own_solver = replace(solver, shrinkage=shares[first:last])
            return solve(layers, settings, own_solver, pending)

        starts = range(0, count, size)
        runs = map(solve_from, starts) if on_gpu else each_alone(solve_from, starts)
        return list(chain.from_iterable(runs))


def _importance_of_rows(importance: Any, count: int, rows: int, channels: int) -> Any:
    """Return weights [E, K] or [E, M, K] of errors as a matrix [E * M, K]; None for None."""
    if importance is None:
        return None
    if importance.shape == (count, channels):
        return take(importance, np.repeat(np.arange(count), rows), 0)
    checks.stack("importance", importance, (count, rows, channels))
    return stacked_rows(importance)


def _joined_grids(
    name: str, grids: Mapping[str, ArrayT] | None, weights: Sequence[str]
) -> ArrayT | None:
    """Join the given scales or zeros of several weights, rows below rows."""
    if grids is None:
        return None
    if missing := [weight for weight in weights if weight not in grids]:
        raise ValueError(f"{name}: expected one for each weight, none for {missing[0]}")
    named = {f"{name}[{weight!r}]": grids[weight] for weight in weights}
    with arrays_of_one_device(**named) as arrays:
        return joined_rows(arrays)


def _stack_of_rows(name: str, stack: Any, count: int) -> Any:
    """Return given scales, zeros or results [E, M, N] as a matrix [E * M, N]."""
    if stack is None:
        return None
    if len(stack.shape) != 3 or stack.shape[0] != count:
        last = "K" if name == "out[0]" else "G"
        expected = f"[{count}, M, {last}]"
        raise ValueError(f"{name}: expected shape {expected}, got {list(stack.shape)}")
    if name.startswith("out"):
        checks.contiguous(name, stack)  # otherwise its rows would be a copy
    return stacked_rows(stack)
