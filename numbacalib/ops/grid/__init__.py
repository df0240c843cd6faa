"""The quantization grid applied to a whole matrix: scales, codes and values.

Round-to-nearest, GPTQ and `QuantizedWeight` share it. Groups are given by `group_of`, the group's index
for each input channel, int64 [K]; codes are stored unsigned, less the grid's least code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from numbacalib.ops.grid import cpu
from numbacalib.runtime.backend import call
from numbacalib.spec.grid import INTEGER, Grid


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.grid import gpu

    return gpu


def grid_scales(matrix: Any, group_size: int, grid: Grid) -> tuple[Any, Any]:
    """Scales and zero points of the groups of a matrix [M, K], each [M, G], in its accumulator type."""
    with call(cpu, _gpu, matrix=matrix) as (kernels, matrix):
        return kernels.find_scales(matrix, group_size, grid)


def grid_codes(matrix: Any, scales: Any, zeros: Any, group_of: Any, grid: Grid) -> Any:
    """Unsigned codes of a matrix [M, K] on a grid whose scales and zeros are known, uint8 [M, K]."""
    arrays = {"matrix": matrix, "scales": scales, "zeros": zeros}
    with call(cpu, _gpu, **arrays) as (kernels, matrix, scales, zeros):
        return kernels.encode(matrix, scales, zeros, group_of, grid)


def stored_arrays(
    scales: Any, zeros: Any, dtype: np.dtype, grid: Grid
) -> tuple[Any, Any, Callable[[], None]]:
    """Scales [M, G] in the dtype that stores them, and zeros for unsigned codes, uint8.

    The function that is returned with them raises a ValueError if a scale is infinite in `dtype`.
    """
    with call(cpu, _gpu, scales=scales, zeros=zeros) as (kernels, scales, zeros):
        return kernels.stored_arrays(scales, zeros, dtype, grid, f"scale_dtype: scales in {dtype}")


def shifted(array: Any, offset: int, dtype: Any, out: Any = None) -> Any:
    """``array + offset`` of integers, or of floats, [M, N] in another dtype, in `out` if it is given.

    The other dtype must hold all the results.
    """
    with call(cpu, _gpu, array=array, out=out) as (kernels, array, out):
        return kernels.shifted(array, offset, np.dtype(dtype), out)


def grid_values(
    codes: Any, scales: Any, zeros: Any, group_of: Any, bits: int, element: str = INTEGER
) -> Any:
    """Weights that stored codes and zeros stand for, [M, K] in the dtype of the scales."""
    with call(cpu, _gpu, codes=codes, scales=scales, zeros=zeros) as (kernels, *arrays):
        return kernels.decode(*arrays, group_of, Grid(bits, symmetric=False, element=element))


def start_counting_clipped(
    matrix: Any, scales: Any, zeros: Any, group_of: Any, bits: int, element: str = INTEGER
) -> Callable[[], int]:
    """Count the elements of a matrix that lie more than a step past the ends of their stored grid.

    Returns a function that waits for the count.
    """
    arrays = {"matrix": matrix, "scales": scales, "zeros": zeros}
    with call(cpu, _gpu, **arrays) as (kernels, *taken):
        grid = Grid(bits, symmetric=False, element=element)
        return kernels.start_counting_clipped(*taken, group_of, grid)
