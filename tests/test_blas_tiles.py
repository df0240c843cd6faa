"""Products in tiles of fixed shape: right at their edges, and the same at any number of threads."""

import os
import subprocess
import sys

import numpy as np
import pytest

from numbacalib.runtime.blas_tiles import TILE, add_square, multiply

SHAPES = [(1, 1, 1), (TILE, TILE, TILE), (3, TILE + 1, 2 * TILE + 5), (2 * TILE + 1, 70, TILE - 1)]


def matrix(seed, *shape, dtype):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("count", "size", "width"), SHAPES)
def test_a_product_is_numpys(count, size, width, dtype):
    x, weight = matrix(1, count, size, dtype=dtype), matrix(2, width, size, dtype=dtype)
    out = np.full((count, width), np.nan, dtype)
    multiply(x, weight, out)
    expected = x.astype(np.float64) @ weight.astype(np.float64).T
    tolerance = 30 * np.finfo(dtype).eps * size
    np.testing.assert_allclose(out, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("count", "_", "size"), SHAPES)
def test_the_upper_triangle_of_a_square_is_numpys(count, _, size, dtype, order):
    x = np.asarray(matrix(1, count, size, dtype=dtype), order=order)
    before = matrix(2, size, size, dtype=dtype)
    target = before.copy()
    add_square(target, x, 0.5, 0.25)
    expected = 0.25 * before.astype(np.float64) + 0.5 * x.astype(np.float64).T @ x
    upper = np.triu_indices(size)
    tolerance = 30 * np.finfo(dtype).eps * count
    np.testing.assert_allclose(target[upper], expected[upper], rtol=0, atol=tolerance)


def test_threads_do_not_show():
    code = (
        "import numpy as np, numbacalib, hashlib\n"
        "from numbacalib.runtime.blas_tiles import multiply\n"
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
