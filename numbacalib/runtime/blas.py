"""The BLAS and LAPACK calls that NumPy does not offer, through SciPy, on row-major matrices.

LAPACK is column-major: the transpose of a C-contiguous matrix is the same memory, so the upper
triangle of our matrix is LAPACK's lower one and no copy is made. All calls go through SciPy's BLAS, since
NumPy's has another pool of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime.scipy_routines import ADDRESSES, FILE
from numbacalib.runtime.threads import launching

SMALL = 1024
"""Order up to which a matrix is factored on one thread."""


def routine(name: str, dtype: np.dtype) -> int:
    """Address of a routine of SciPy's BLAS or LAPACK, such as ``gemm``, in single or double precision.

    For `numbacalib.runtime.tasks.call_fortran`: dimensions are 32-bit.
    """
    return ADDRESSES[dtype.char.replace("f", "s") + name]


def _call(name: str, dtype: np.dtype, *arguments: str | int | float | NDArray) -> None:
    """Call a routine: letters as characters, ints as C ints, floats as `dtype`, arrays by first element."""
    real = ctypes.c_float if dtype == np.float32 else ctypes.c_double
    references: list[Any] = []
    for argument in arguments:
        match argument:
            case str():
                references.append(ctypes.byref(ctypes.c_char(argument.encode())))
            case int():
                references.append(ctypes.byref(ctypes.c_int(argument)))
            case float():
                references.append(ctypes.byref(real(argument)))
            case _:
                references.append(ctypes.c_void_p(argument.ctypes.data))
    ctypes.CFUNCTYPE(None)(routine(name, dtype))(*references)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Let kernels call BLAS on each of their own threads, while nothing else of ours runs.

    OpenBLAS is switched to one thread. A BLAS without this switch detects that it is called inside a
    parallel region, or serializes its callers: slower, with the same results.
    """
    switch = None if launching.is_left_out else _thread_switch()
    with launching:
        if switch is None:
            yield
            return
        read, write = switch
        threads = read()
        write(1)
        try:
            yield
        finally:
            write(threads)


def _threads_for(matrix: NDArray) -> AbstractContextManager[Any]:
    """Run a factorization on all threads, or on one if the matrix is small.

    For a small one, a second thread saves less than its idle spinning costs the kernels that follow.
    """
    return launching if len(matrix) > SMALL else single_threaded()


@cache
def _thread_switch() -> tuple[Any, Any] | None:
    """OpenBLAS's ``get_num_threads`` and ``set_num_threads``, under the names of various builds."""
    # Symbols are also searched in the libraries that the module links to.
    library = ctypes.CDLL(FILE)
    for prefix in ("scipy_openblas", "openblas"):
        for suffix in ("", "64_", "_64"):
            names = (f"{prefix}_{verb}_num_threads{suffix}" for verb in ("get", "set"))
            with suppress(AttributeError):
                read, write = (getattr(library, name) for name in names)
                return read, write
    return None


def cholesky_lower(matrix: NDArray) -> int:
    """Overwrite the lower triangle of a C-contiguous matrix by its Cholesky factor L, ``A = L L^T``.

    Returns 0, or the order of the leading minor that is not positive definite. The upper triangle is
    unchanged.
    """
    info = np.zeros(1, np.intc)
    with _threads_for(matrix):
        _call("potrf", matrix.dtype, "U", len(matrix), matrix, len(matrix), info)
    return int(info[0])


def invert_triangle(matrix: NDArray, *, lower: bool) -> None:
    """Overwrite one triangle of a C-contiguous matrix by the inverse of that triangle."""
    info = np.zeros(1, np.intc)
    with _threads_for(matrix):
        triangle = "U" if lower else "L"
        _call("trtri", matrix.dtype, triangle, "N", len(matrix), matrix, len(matrix), info)
    if info[0]:
        raise np.linalg.LinAlgError(f"triangular factor is singular at index {info[0] - 1}")
