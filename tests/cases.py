"""Inputs for the operations' tests, and how close a result must come to the naive one."""

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

DTYPES = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)
LAYOUTS = ("C", "F", "row step", "column step", "reversed", "window")


def tolerance(dtype, length):
    """Relative error allowed to a sum of `length` terms, from the accumulators' precision."""
    wide = np.dtype(dtype) == np.float64
    return float(np.finfo(np.float64 if wide else np.float32).eps) * (16 + length**0.5)


def result_dtype(*arrays):
    return np.float64 if any(a.dtype == np.float64 for a in arrays) else np.float32


def laid_out(matrix, layout):
    """The same values in memory of another layout."""
    rows, columns = matrix.shape
    if layout == "F":
        return np.asfortranarray(matrix)
    if layout == "row step":
        big = np.full((2 * rows, columns), np.nan, matrix.dtype)
        big[::2] = matrix
        return big[::2]
    if layout == "column step":
        big = np.full((rows, 3 * columns), np.nan, matrix.dtype)
        big[:, ::3] = matrix
        return big[:, ::3]
    if layout == "reversed":
        return np.ascontiguousarray(matrix[::-1, ::-1])[::-1, ::-1]
    if layout == "window":
        big = np.full((rows + 3, columns + 5), np.nan, matrix.dtype)
        big[2:-1, 3:-2] = matrix
        return big[2:-1, 3:-2]
    return np.ascontiguousarray(matrix)


def random_matrix(seed, shape, dtype=np.float64, layout="C", scale=1.0):
    values = np.random.default_rng(seed).normal(size=shape) * scale
    return laid_out(values.astype(dtype), layout)


@st.composite
def matrices(draw, rows=None, columns=None, most=40):
    """A random normal matrix of any of the dtypes and layouts."""
    sizes = st.integers(1, most)
    shape = (rows or draw(sizes), columns or draw(sizes))
    return random_matrix(
        draw(st.integers(0, 2**32 - 1)),
        shape,
        draw(st.sampled_from(DTYPES)),
        draw(st.sampled_from(LAYOUTS)),
    )


def random_hessian(seed, channels, tokens=None):
    """A full-rank Hessian of correlated inputs, float64."""
    rng = np.random.default_rng(seed)
    tokens = tokens or 2 * channels
    x = rng.normal(size=(tokens, channels)) @ rng.normal(size=(channels, channels))
    return 2 / tokens * x.T @ x
