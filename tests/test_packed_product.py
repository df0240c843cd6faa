"""Products of whole matrices: right at the edges of tiles, and the same at any number of threads."""

import os
import subprocess
import sys

import cases
import numpy as np
import pytest

from numbacalib.runtime import packed_product
from numbacalib.runtime.packed_product import (
    DEPTH,
    LARGE,
    SMALL,
    add_moment,
    add_square,
    multiply,
)

PRODUCTS = [
    (tile, *shape)
    for tile in (LARGE, SMALL)
    for shape in (
        (1, 1, 1),
        (tile[0], DEPTH, tile[1]),
        (3, DEPTH + 1, 2 * tile[1] + 5),
        (2 * tile[0] + 1, 70, tile[1] - 1),
        (0, 5, 7),
        (7, 0, 5),
    )
]
SQUARES = [
    (tile, *shape)
    for tile in (LARGE, SMALL)
    for shape in ((1, 1), (DEPTH + 3, 2 * tile[1] + 5), (70, tile[0] - 1))
]
LAYOUTS = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "part": lambda a: np.repeat(np.repeat(a, 2, axis=0), 3, axis=1)[::2, ::3],
    "backwards": lambda a: np.ascontiguousarray(a[::-1])[::-1],
}


def matrix(seed, *shape, dtype, layout="C"):
    return LAYOUTS[layout](np.random.default_rng(seed).normal(size=shape).astype(dtype))


@pytest.fixture
def tile(request, monkeypatch):
    """Size of all tiles, whatever the result's."""
    monkeypatch.setattr(packed_product, "LARGE", request.param)
    monkeypatch.setattr(packed_product, "SMALL", request.param)
    return request.param


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("tile", "count", "size", "width"), PRODUCTS, indirect=["tile"])
@pytest.mark.usefixtures("tile")
def test_a_product_is_numpys(count, size, width, dtype, layout):
    x = matrix(1, count, size, dtype=dtype, layout=layout)
    weight = matrix(2, width, size, dtype=dtype)
    out = np.full((count, width), np.nan, dtype)
    multiply(x, weight, out)
    expected = x.astype(np.float64) @ weight.astype(np.float64).T
    tolerance = 30 * np.finfo(dtype).eps * size
    np.testing.assert_allclose(out, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(("tile", "count", "size"), SQUARES, indirect=["tile"])
@pytest.mark.usefixtures("tile")
def test_the_upper_triangle_of_a_square_is_numpys(count, size, dtype, layout):
    x = matrix(1, count, size, dtype=dtype, layout=layout)
    before = matrix(2, size, size, dtype=np.float64 if dtype == np.float64 else np.float32)
    target = before.copy()
    add_square(target, x, 0.5, 0.25)
    expected = 0.25 * before.astype(np.float64) + 0.5 * x.astype(np.float64).T @ x.astype(
        np.float64
    )
    upper = np.triu_indices(size)
    tolerance = 30 * np.finfo(before.dtype).eps * count
    np.testing.assert_allclose(target[upper], expected[upper], rtol=0, atol=tolerance)


def test_operands_of_a_moment_have_dtypes_of_their_own():
    left, right = matrix(1, 150, 30, dtype=np.float16), matrix(2, 150, 20, dtype=np.float32)
    out = np.ones((30, 20), np.float32)
    add_moment(out, left, right, 0.5, 2.0)
    np.testing.assert_allclose(out, 2 + 0.5 * left.astype(np.float64).T @ right, atol=1e-4)


@pytest.mark.parametrize("tile", [LARGE, SMALL], indirect=True)
def test_a_sum_is_the_same_wherever_its_tile_begins(tile):
    x = matrix(1, 3 * DEPTH + 5, 2 * tile[1] + 9, dtype=np.float32)
    both = np.empty((x.shape[1],) * 2, np.float32)
    add_moment(both, x, x, 1.0, 0.0)
    assert np.array_equal(both, both.T)
    part = np.empty((3, 5), np.float32)
    add_moment(part, x[:, 7:10], x[:, 40:45], 1.0, 0.0)
    assert np.array_equal(part, both[7:10, 40:45])


def test_threads_that_choose_the_size_of_tiles_do_not_show(monkeypatch):
    x, size = matrix(1, 2 * DEPTH + 3, 3 * LARGE[0] + 1, dtype=np.float32), 3 * LARGE[0] + 1
    run, tiles, found = packed_product._multiply, [], []
    monkeypatch.setattr(
        packed_product, "_multiply", lambda *given: (tiles.append(given[-2]), run(*given))
    )
    for threads in (1, 2):
        monkeypatch.setattr(packed_product, "thread_count", lambda threads=threads: threads)
        found.append(np.zeros((size, size), np.float32))
        add_square(found[-1], x, 0.5, 1.0)
    assert tiles == [LARGE, SMALL]
    assert np.array_equal(*map(np.triu, found))


def test_threads_do_not_show():
    code = (
        "import numpy as np, numbacalib, hashlib\n"
        "from numbacalib.runtime.packed_product import multiply\n"
        "x = np.random.default_rng(0).normal(size=(700, 600)).astype(np.float32)\n"
        "weight = np.random.default_rng(1).normal(size=(530, 600)).astype(np.float32)\n"
        "out, zeros = np.empty((700, 530), np.float32), np.zeros((600, 600), np.float32)\n"
        "multiply(x, weight, out)\n"
        "hessian = numbacalib.gptq_hessian_update(zeros, x)\n"
        "print(hashlib.sha256(out).hexdigest(), hashlib.sha256(hessian).hexdigest())\n"
    )
    found = set()
    for threads in "12":
        variables = "NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"
        environment = os.environ | dict.fromkeys(variables, threads)
        command = [sys.executable, "-c", code]
        found.add(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert len(found) == 1
