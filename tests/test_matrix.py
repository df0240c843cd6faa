"""Parts of matrices that GPTQ works on, on every backend."""

import ml_dtypes
import numpy as np
import pytest

from numbacalib.ops.falling_order import falling_order
from numbacalib.ops.matrix import live_columns, split_rows, to_host

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 3])
def test_dead_columns_are_0_in_either_order(backend, dtype, count):
    rng = np.random.default_rng(0)
    rows, channels = 4, 11
    matrix = rng.normal(size=(count * rows, channels)).astype(dtype)
    dead = rng.random((count, channels)) < 0.3
    matrix[:rows][:, dead[0]] = np.nan  # a dead channel's weight has no effect
    order = np.stack([rng.permutation(channels) for _ in range(count)])
    expected = np.where(np.repeat(dead, rows, axis=0), 0, matrix)
    arrays = backend.array(matrix), backend.array(dead)
    live, same = map(to_host, live_columns(*arrays))
    np.testing.assert_array_equal(live, expected)
    np.testing.assert_array_equal(same, expected)
    live, placed = map(to_host, live_columns(*arrays, backend.array(order)))
    np.testing.assert_array_equal(live, expected)
    placed_rows = np.repeat(order, rows, axis=0)
    np.testing.assert_array_equal(placed, np.take_along_axis(expected, placed_rows, 1))
    assert live.dtype == placed.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_fall_by_diagonals_of_any_dtype(backend, dtype):
    diagonals = np.array([[1, 5, 2, 5], [0.5, -1, 8, 0]], dtype)
    matrices = np.full((2, 4, 4), 9, dtype)
    matrices[:, range(4), range(4)] = diagonals
    order = to_host(falling_order(backend.array(matrices), 2).order)
    np.testing.assert_array_equal(order, [[1, 3, 2, 0], [2, 0, 3, 1]])


def test_runs_of_rows_of_several_matrices(backend):
    first = np.arange(12, dtype=np.float32).reshape(6, 2)
    second = np.arange(6, dtype=np.uint8).reshape(6, 1)
    arrays = backend.array(first), backend.array(second)
    runs = split_rows(arrays, [1, 3, 2])
    assert [len(run) for run in runs] == [2, 2, 2]
    for begin, end, run in zip([0, 1, 4], [1, 4, 6], runs, strict=True):
        np.testing.assert_array_equal(to_host(run[0]), first[begin:end])
        np.testing.assert_array_equal(to_host(run[1]), second[begin:end])
