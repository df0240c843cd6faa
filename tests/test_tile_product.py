"""Products of packed operands against NumPy's."""

import numpy as np
import pytest

from numbacalib.runtime.tile_product import COLUMNS, DEPTH, LANES, add_product


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("depth", [0, 1, DEPTH, 2 * DEPTH + 7])
def test_product_of_packed_panels_is_added(dtype, depth):
    rng = np.random.default_rng(depth)
    row_panels, column_panels, top = 3, 2, 5
    left = rng.standard_normal((row_panels + 1, depth + 2, LANES)).astype(dtype)
    right = rng.standard_normal((column_panels, top + depth + 1, COLUMNS)).astype(dtype)
    target = rng.standard_normal((row_panels + 1, column_panels * COLUMNS + 4, LANES)).astype(dtype)
    expected = target.astype(np.float64)
    flat = (
        right[:, top : top + depth]
        .astype(np.float64)
        .transpose(1, 0, 2)
        .reshape(depth, column_panels * COLUMNS)
    )
    for p in range(row_panels):
        expected[p, : column_panels * COLUMNS] += flat.T @ left[p, :depth].astype(np.float64)
    add_product(left[:row_panels, :depth], right, top, target)
    tolerance = 4 * np.finfo(dtype).eps * max(depth, 1)
    np.testing.assert_allclose(target, expected, rtol=tolerance, atol=tolerance)
    assert np.array_equal(target[row_panels:], expected[row_panels:].astype(dtype))
    assert np.array_equal(
        target[:, column_panels * COLUMNS :], expected[:, column_panels * COLUMNS :]
    )
