"""BLAS and LAPACK for device arrays: cuBLAS and cuSOLVER through CuPy's bindings.

The libraries are column-major: they see the transposes of our matrices, in the same memory. All calls run
on the current stream. Without CuPy, factors are computed on the host.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from numbacalib.runtime import blas, blas_rows, device
from numbacalib.runtime.device import address, cuda, empty, from_host, read, write
from numbacalib.runtime.half import is_bfloat16
from numbacalib.runtime.launch import column_blocks, launch

THREADS = 256
RUN = device.sized(4096, simulated=40)
"""Rows whose products are summed at once: sums of runs are added in order, which bounds rounding errors."""
HALF_RUN = device.sized(512, simulated=8)
"""The same for 16-bit rows, whose sums tensor cores truncate: see `numbacalib.runtime.product`."""


def has_libraries() -> bool:
    """Return whether CuPy is installed."""
    return device.has_libraries()


def cholesky_upper(matrix: Any, info: Any) -> None:
    """Overwrite the upper triangle of a matrix by ``U``, ``A = U^T U``. Rows are contiguous, at any stride.

    `info`, int32 [1], becomes 0 or the order of the leading minor that is not positive. The lower
    triangle is unchanged.
    """
    if not has_libraries():
        lower = np.ascontiguousarray(read(matrix).T)
        write(info, np.array([blas.cholesky_lower(lower)], np.int32))
        write(matrix, np.ascontiguousarray(lower.T))
        return
    from cupy.cuda.device import get_cusolver_handle
    from cupy_backends.cuda.libs import cublas, cusolver

    potrf = cusolver.spotrf if matrix.dtype == np.float32 else cusolver.dpotrf
    with _current_stream():
        size, pitch = len(matrix), _pitch(matrix)
        length = _length_of_work(device.current_device(), matrix.dtype, size, pitch)
        work = empty((length,), matrix.dtype)
        where = cublas.CUBLAS_FILL_MODE_LOWER, size, address(matrix), pitch
        potrf(get_cusolver_handle(), *where, address(work), length, address(info))


@functools.lru_cache(maxsize=1024)
def _length_of_work(number: int, dtype: np.dtype, size: int, pitch: int) -> int:
    """Elements of work space that the current device, device `number`, factors a matrix with."""
    from cupy.cuda.device import get_cusolver_handle
    from cupy_backends.cuda.libs import cublas, cusolver

    del number
    query = cusolver.spotrf_bufferSize if dtype == np.float32 else cusolver.dpotrf_bufferSize
    no_matrix = 0  # the length does not depend on its values
    lower = cublas.CUBLAS_FILL_MODE_LOWER
    return int(query(get_cusolver_handle(), lower, size, no_matrix, pitch))


def invert_upper(triangle: Any) -> Any:
    """Return the inverse of an upper triangular C-contiguous matrix."""
    if not has_libraries():
        host = read(triangle)
        blas.invert_triangle(host, lower=False)
        return from_host(host)
    inverse = empty(triangle.shape, triangle.dtype)
    blocks = column_blocks(triangle.shape, THREADS)
    launch(_identity, blocks, THREADS, inverse)
    _solve(triangle, inverse, on_right=False, transposed=False)
    return inverse


def solve_columns(upper: Any, columns: Any) -> None:
    """Overwrite `columns` [K, N] by X, ``R^T X = columns``.

    ``R`` [K, K] is upper triangular; rows of both are contiguous, at any stride. Needs the libraries.
    """
    _solve(upper, columns, on_right=True, transposed=True)


def solve_triangle(upper: Any, rows: Any, *, transposed: bool) -> None:
    """Overwrite `rows` [M, K] by X, ``X R = rows``, or ``X R^T = rows`` with `transposed`.

    ``R`` [K, K] is upper triangular; both are of one dtype, and their rows contiguous, at any stride with
    the libraries.
    """
    if not has_libraries():
        found = read(rows)
        blas_rows.solve_rows(read(upper), found, transposed=transposed)
        write(rows, found)
        return
    _solve(upper, rows, on_right=False, transposed=transposed)


def _solve(triangle: Any, matrix: Any, *, on_right: bool, transposed: bool) -> None:
    """Overwrite a matrix by the solution of a triangular system, in cuBLAS's column-major view.

    In that view `triangle` is lower triangular and `matrix` is transposed. Rows of both are contiguous, at
    any stride.
    """
    from cupy.cuda.device import get_cublas_handle
    from cupy_backends.cuda.libs import cublas

    rows, columns = matrix.shape
    one = np.ones(1, matrix.dtype)
    trsm = cublas.strsm if matrix.dtype == np.float32 else cublas.dtrsm
    with _current_stream():
        trsm(
            get_cublas_handle(),
            cublas.CUBLAS_SIDE_RIGHT if on_right else cublas.CUBLAS_SIDE_LEFT,
            cublas.CUBLAS_FILL_MODE_LOWER,
            cublas.CUBLAS_OP_T if transposed else cublas.CUBLAS_OP_N,
            cublas.CUBLAS_DIAG_NON_UNIT,
            columns,
            rows,
            one.ctypes.data,
            address(triangle),
            _pitch(triangle),
            address(matrix),
            _pitch(matrix),
        )


def add_products(
    left: Any,
    right: Any,
    out: Any,
    *,
    factor: float = 1.0,
    transposed: bool = False,
) -> None:
    """Add ``factor * left[e] @ right[e]`` to ``out[e]``, [E, M, k] by [E, k, N].

    Rows are contiguous, at any stride, and the E matrices are at any stride too. With `transposed`, `right`
    is [E, N, k] and its transposes are multiplied. All are of one dtype, float32 or float64, or the
    operands of a float32 result are 16-bit carriers.
    """
    from cupy.cuda.device import get_cublas_handle
    from cupy_backends.cuda.libs import cublas

    count, rows, columns = out.shape
    compute = _COMPUTE_64F if out.dtype == np.float64 else _COMPUTE_32F
    one, scale = np.ones(1, out.dtype), np.full(1, factor, out.dtype)
    operands = []
    for array in (right, left, out):
        steps = array.strides[1] // array.dtype.itemsize, array.strides[0] // array.dtype.itemsize
        operands.append((address(array), _kind(array.dtype), *steps))
    with _current_stream():
        cublas.gemmStridedBatchedEx(
            get_cublas_handle(),
            cublas.CUBLAS_OP_T if transposed else cublas.CUBLAS_OP_N,
            cublas.CUBLAS_OP_N,
            columns,
            rows,
            left.shape[2],
            scale.ctypes.data,
            *operands[0],
            *operands[1],
            one.ctypes.data,
            *operands[2],
            count,
            compute,
            _DEFAULT_ALGORITHM,
        )


_KINDS = {
    np.dtype(np.float32): 0,
    np.dtype(np.float64): 1,
    np.dtype(np.float16): 2,
    np.dtype(np.uint16): 2,
    np.dtype(np.int16): 14,
}
"""cudaDataType of elements and carriers; bfloat16 is 14.
https://docs.nvidia.com/cuda/cublas/#cudadatatype-t"""
_COMPUTE_32F, _COMPUTE_64F, _DEFAULT_ALGORITHM = 68, 70, -1
"""cublasComputeType_t and cublasGemmAlgo_t: sums in float32, whatever the operands are, or in float64."""


def add_linear(x: Any, weight: Any, out: Any, *, keep: bool) -> None:
    """Set `out` [N, M] to ``x weight^T``, or add that to it with `keep`; x [N, K], weight [M, K]."""
    multiply(x, weight, out, keep=float(keep), transposed=(False, True))


def add_moment(left: Any, right: Any, out: Any, *, factor: float, keep: float) -> None:
    """Set `out` [K, L] to ``factor * left^T right + keep * out``, of many rows: [N, K] and [N, L].

    Layouts and dtypes are as in `multiply`.
    """
    length = HALF_RUN if left.dtype.itemsize == 2 else RUN
    for first in range(0, len(left), length):
        rows = slice(first, first + length)
        operands = left[rows], right[rows], out
        multiply(*operands, factor=factor, keep=keep, transposed=(True, False))
        keep = 1.0


def multiply(
    left: Any,
    right: Any,
    out: Any,
    *,
    factor: float = 1.0,
    keep: float = 0.0,
    transposed: tuple[bool, bool] = (False, False),
) -> None:
    """Set `out` to ``factor * left right + keep * out``, with each operand `transposed` or not.

    Rows are contiguous, those of `left` and `right` at any stride. Operands are of one dtype of float16,
    bfloat16 and float32, `out` of that or float32, with float32 sums; or all are float64.
    """
    if not has_libraries():
        wide = np.dtype(np.float64 if out.dtype == np.float64 else np.float32)
        a, b = (np.stack([read(row) for row in array]).astype(wide) for array in (left, right))
        product = (a.T if transposed[0] else a) @ (b.T if transposed[1] else b)
        product *= wide.type(factor)
        if keep:
            product += wide.type(keep) * read(out)
        write(out, product.astype(out.dtype))
        return
    from cupy.cuda.device import get_cublas_handle
    from cupy_backends.cuda.libs import cublas

    rows, columns = out.shape
    depth = left.shape[0 if transposed[0] else 1]
    double = out.dtype == np.float64
    scalars = np.array([factor, keep], np.float64 if double else np.float32)
    operands = [
        (address(array), _kind(array.dtype), array.strides[0] // array.dtype.itemsize)
        for array in (right, left, out)
    ]
    turned = [cublas.CUBLAS_OP_T if turn else cublas.CUBLAS_OP_N for turn in transposed[::-1]]
    with _current_stream():
        cublas.gemmEx(
            get_cublas_handle(),
            *turned,
            columns,
            rows,
            depth,
            scalars[:1].ctypes.data,
            *operands[0],
            *operands[1],
            scalars[1:].ctypes.data,
            *operands[2],
            _COMPUTE_64F if double else _COMPUTE_32F,
            _DEFAULT_ALGORITHM,
        )


def _pitch(matrix: Any) -> int:
    """Elements from a row to the next."""
    return matrix.strides[0] // matrix.dtype.itemsize


def _kind(dtype: np.dtype) -> int:
    return 14 if is_bfloat16(dtype) else _KINDS[dtype]


def _current_stream() -> Any:
    """Return the context manager in which CuPy's libraries use the current stream."""
    from numbacalib.runtime.memory import cupy_stream

    return cupy_stream(device.stream_handle(), device.current_device())


@cuda.jit
def _identity(matrix):
    """Threads: one per column, blocks stride over the rows."""
    j = cuda.grid(1)
    if j < matrix.shape[1]:
        for i in range(np.int64(cuda.blockIdx.y), matrix.shape[0], cuda.gridDim.y):
            matrix[i, j] = i == j
