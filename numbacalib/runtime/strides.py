"""Matrices of any strides, presented to kernels as one compiled layout."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray


def rows_view(array: NDArray) -> NDArray:
    """Present a matrix whose rows are contiguous as a C-contiguous one, whatever its row stride.

    The result has the row stride as its width: `[N, K]` becomes `[N, ld]`, in BLAS's term, and a kernel
    reads only the first K columns. The view covers memory past the array, which is never read. A matrix
    with other strides is copied, in its own dtype, which takes milliseconds, while a kernel for arbitrary
    strides would take seconds to compile. Always read-only, so that a kernel is compiled once.
    """
    step = array.itemsize
    leading, inner = array.strides
    if array.shape[1] == 1:
        inner = step
    if array.shape[0] == 1:
        leading = step * array.shape[1]
    if inner != step or leading <= 0 or leading % step:
        array = np.ascontiguousarray(array)
        leading = step * array.shape[1]
    return as_strided(array, (array.shape[0], leading // step), (leading, step), writeable=False)
