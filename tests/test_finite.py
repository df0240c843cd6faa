"""Checks of values: finite ones, of several arrays at once, and not below 0, in every dtype and layout."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from numbacalib.runtime.finite import require_non_negative, start_finite_check

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def matrix_of(value: float, dtype: type, *, strided: bool) -> np.ndarray:
    matrix = np.ones((5, 74), dtype)
    matrix[3, 68] = value
    return matrix[:, ::2] if strided else matrix


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
class TestNonNegative:
    @pytest.mark.parametrize("value", [0.0, -0.0, 1e-30, 6e4])
    def test_passes(self, value, dtype, strided):
        require_non_negative("importance", matrix_of(value, dtype, strided=strided))

    @pytest.mark.parametrize("value", [-1e-7, -6e4])
    def test_below_0(self, value, dtype, strided):
        with pytest.raises(ValueError, match="importance: expected finite values not below 0"):
            require_non_negative("importance", matrix_of(value, dtype, strided=strided))

    @pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
    def test_not_finite(self, value, dtype, strided):
        where = r"\[3, 34\]" if strided else r"\[3, 68\]"
        with pytest.raises(
            ValueError, match=f"importance: expected finite values, got .* at {where}"
        ):
            require_non_negative("importance", matrix_of(value, dtype, strided=strided))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_of_several_arrays_that_is_not_finite_is_named(backend, dtype):
    clean, bad = (np.ones((3, 5), dtype) for _ in range(2))
    bad[2, 1:3] = np.inf
    stack = np.ones((2, 2, 3), dtype)
    stack[0, 1, 2] = -np.inf
    named = {
        name: backend.array(array) for name, array in zip("abc", (clean, bad, stack), strict=True)
    }
    with pytest.raises(ValueError, match=r"b: expected finite values, got inf at \[2, 1\]"):
        start_finite_check(named)()
    with pytest.raises(ValueError, match=r"c: expected finite values, got -inf at \[0, 1, 2\]"):
        start_finite_check({"c": named["c"], "b": named["b"]})()
    start_finite_check({"a": named["a"]})()
    start_finite_check({})()
