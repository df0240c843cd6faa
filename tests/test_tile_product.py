"""Products of operands in tiles against NumPy's."""

import numpy as np
import pytest

from numbacalib.runtime.tile_product import COLUMNS, DEPTH, LANES, add_product


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("depth", [0, 1, DEPTH, 2 * DEPTH + 7])
def test_tiles_are_added_to(dtype, depth):
    rng = np.random.default_rng(depth)
    tiles, strips, top = 3, 2, 5
    left = rng.standard_normal((tiles + 1, depth + 2, LANES)).astype(dtype)
    right = rng.standard_normal((strips, top + depth + 1, COLUMNS)).astype(dtype)
    target = rng.standard_normal((tiles + 1, strips * COLUMNS + 4, LANES)).astype(dtype)
    expected = target.astype(np.float64)
    flat = (
        right[:, top : top + depth]
        .astype(np.float64)
        .transpose(1, 0, 2)
        .reshape(depth, strips * COLUMNS)
    )
    for tile in range(tiles):
        expected[tile, : strips * COLUMNS] += flat.T @ left[tile, :depth].astype(np.float64)
    add_product(left[:tiles, :depth], right, top, target)
    tolerance = 4 * np.finfo(dtype).eps * max(depth, 1)
    np.testing.assert_allclose(target, expected, rtol=tolerance, atol=tolerance)
    assert np.array_equal(target[tiles:], expected[tiles:].astype(dtype))
    assert np.array_equal(target[:, strips * COLUMNS :], expected[:, strips * COLUMNS :])
