"""Orders of columns by falling values, on every backend."""

import numpy as np
import pytest

from numbacalib.methods.order import column_orders
from numbacalib.ops.falling_order import falling_order
from numbacalib.ops.matrix import to_host


def with_diagonals(diagonals):
    """Matrices [E, K, K] of ones beside diagonals [E, K]."""
    matrices = np.ones((*diagonals.shape, diagonals.shape[1]), diagonals.dtype)
    for matrix, diagonal in zip(matrices, diagonals, strict=True):
        np.fill_diagonal(matrix, diagonal)
    return matrices


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (3, 12)])
def test_values_fall_and_equal_ones_keep_their_order(backend, dtype, shape):
    values = np.random.default_rng(0).normal(size=shape).astype(dtype)
    values[0, ::3] = 0
    values[0, 1::3] = -0.0  # equal to 0
    order, place, group = map(to_host, falling_order(backend.array(with_diagonals(values)), 3))
    expected = [sorted(range(shape[1]), key=lambda j: -row[j]) for row in values]
    np.testing.assert_array_equal(order, expected)
    np.testing.assert_array_equal(np.take_along_axis(order, place, 1), [range(shape[1])] * shape[0])
    np.testing.assert_array_equal(group, order // 3)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_any_values_give_permutations(backend, bad):
    """What is not finite is named by a check that goes on beside: indices must stay inside till then."""
    values = np.array([[1, bad, -2, bad, 0.5]], np.float32)
    order, place, _ = map(to_host, falling_order(backend.array(with_diagonals(values)), 5))
    for found in (order, place):
        assert sorted(found[0]) == [0, 1, 2, 3, 4]


def test_groups_stay_runs_where_they_are_to(backend):
    diagonals = np.array([[1.0, 5, 2, 3, 4, 9]])
    hessians = backend.array(with_diagonals(diagonals))
    orders = column_orders(hessians, "group_aware", 2)
    order, place, group = map(to_host, orders)
    np.testing.assert_array_equal(order, [[5, 4, 1, 0, 3, 2]])
    np.testing.assert_array_equal(place, [[3, 2, 5, 4, 1, 0]])
    np.testing.assert_array_equal(group, [[2, 2, 0, 0, 1, 1]])
    assert column_orders(hessians, "none", 2) is None
