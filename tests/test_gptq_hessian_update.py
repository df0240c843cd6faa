import cases
import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numbacalib


def symmetric_matrix(seed, size, dtype=np.float32):
    matrix = cases.random_matrix(seed, (size, size))
    return (matrix + matrix.T).astype(dtype)


def check(backend, hessian, x_block, **options):
    result = numbacalib.gptq_hessian_update(
        backend.array(hessian), backend.array(x_block), **options
    )
    updated = backend.numpy(result)
    assert updated.dtype == cases.result_dtype(hessian, x_block)
    np.testing.assert_array_equal(updated, updated.T)
    expected = naive.gptq_hessian_update(hessian, x_block, **options)
    scale = np.abs(expected).max() + np.abs(np.asarray(hessian, np.float64)).max()
    error = np.abs(updated - expected).max()
    assert error <= cases.tolerance(updated.dtype, len(x_block)) * scale


@given(data=st.data())
def test_agrees_with_the_definition(backend, data):
    x_block = data.draw(cases.matrices(most=24))
    dtype = data.draw(st.sampled_from(cases.DTYPES))
    hessian = symmetric_matrix(data.draw(st.integers(0, 99)), x_block.shape[1], dtype)
    check(backend, cases.laid_out(hessian, data.draw(st.sampled_from(cases.LAYOUTS))), x_block)


@given(alpha=st.floats(-3, 3), beta=st.floats(-3, 3), seed=st.integers(0, 99))
def test_alpha_and_beta(backend, alpha, beta, seed):
    x_block = cases.random_matrix(seed, (7, 5), np.float32)
    check(backend, symmetric_matrix(seed, 5), x_block, alpha=alpha, beta=beta)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_more_channels_than_a_mirror_tile_and_more_rows_than_a_chunk(backend, dtype):
    size, rows = (9, 5) if backend.name == "cudasim" else (131, 70)
    x_block = cases.random_matrix(3, (rows, size), dtype)
    hessian = np.zeros((size, size), np.float32)
    updated = backend.numpy(
        numbacalib.gptq_hessian_update(backend.array(hessian), backend.array(x_block))
    )
    x = x_block.astype(np.float64)
    expected = 2 / rows * x.T @ x
    np.testing.assert_array_equal(updated, updated.T)
    np.testing.assert_allclose(
        updated, expected, atol=cases.tolerance(updated.dtype, rows) * expected.max()
    )


def test_the_old_matrix_counts_once_however_many_slices_a_half_block_has():
    x_block = cases.random_matrix(3, (600, 5), np.float16)
    hessian = symmetric_matrix(1, 5)
    updated = numbacalib.gptq_hessian_update(hessian, x_block, beta=0.5)
    x = x_block.astype(np.float64)
    np.testing.assert_allclose(updated, 0.5 * hessian + 2 / 600 * x.T @ x, rtol=1e-5, atol=1e-6)


def test_running_mean_over_blocks_of_different_length(backend):
    x = cases.random_matrix(5, (30, 6), np.float32)
    hessian, seen = backend.array(np.zeros((6, 6), np.float32)), 0
    for block in (x[:3], x[3:4], x[4:]):
        total = seen + len(block)
        hessian = numbacalib.gptq_hessian_update(
            hessian, backend.array(np.ascontiguousarray(block)), alpha=2 / total, beta=seen / total
        )
        seen = total
    whole = naive.gptq_hessian_update(np.zeros((6, 6)), x)
    np.testing.assert_allclose(backend.numpy(hessian), whole, atol=1e-5)


def test_tokens_on_several_axes_are_rows(backend):
    hessian, x = backend.array(symmetric_matrix(1, 6)), cases.random_matrix(2, (12, 6), np.float16)
    expected = numbacalib.gptq_hessian_update(hessian, backend.array(x))
    found = numbacalib.gptq_hessian_update(hessian, backend.array(x.reshape(3, 4, 6)))
    np.testing.assert_array_equal(backend.numpy(found), backend.numpy(expected))


def test_updates_in_place(backend):
    hessian = symmetric_matrix(1, 6)
    x_block = cases.random_matrix(2, (4, 6), np.float32)
    expected = naive.gptq_hessian_update(hessian, x_block)
    target = backend.array(hessian.copy())
    result = numbacalib.gptq_hessian_update(target, backend.array(x_block), out=target)
    assert result is target
    np.testing.assert_allclose(backend.numpy(target), expected, rtol=1e-5, atol=1e-5)


def test_inputs_are_not_written_to(backend):
    hessian = symmetric_matrix(1, 6)
    x_block = cases.random_matrix(2, (4, 6), np.float32)
    kept = hessian.copy(), x_block.copy()
    moved = backend.array(hessian), backend.array(x_block)
    numbacalib.gptq_hessian_update(*moved)
    for array, before in zip(moved, kept, strict=True):
        np.testing.assert_array_equal(backend.numpy(array), before)


def test_errors_name_the_argument():
    x = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"hessian: expected shape \[3, 3\], got \[4, 4\]"):
        numbacalib.gptq_hessian_update(np.zeros((4, 4)), x)
    with pytest.raises(ValueError, match="alpha: expected a finite number, got nan"):
        numbacalib.gptq_hessian_update(np.zeros((3, 3)), x, alpha=np.nan)
    with pytest.raises(TypeError, match="beta: expected a number, got str"):
        numbacalib.gptq_hessian_update(np.zeros((3, 3)), x, beta="1")
    bad = np.zeros((3, 3), np.float32)
    bad[1, 2] = np.inf
    with pytest.raises(ValueError, match=r"hessian: expected finite values, got inf at \[1, 2\]"):
        numbacalib.gptq_hessian_update(bad, x, out=bad)
    with pytest.raises(ValueError, match="out: .*shared with hessian"):
        whole = np.zeros((6, 3), np.float32)
        numbacalib.gptq_hessian_update(whole[:3], x, out=whole[1:4])


@pytest.mark.parametrize("rows", [1, 40])
def test_squares_up_to_the_limit_have_finite_sums(backend, rows):
    limit = (np.finfo(np.float32).max / (2 * rows)) ** 0.5
    x = np.full((rows, 3), 0.9999 * limit, np.float32)
    zeros = backend.array(np.zeros((3, 3), np.float32))
    hessian = backend.numpy(numbacalib.gptq_hessian_update(zeros, backend.array(x)))
    np.testing.assert_allclose(hessian, 2 * (0.9999 * limit) ** 2, rtol=1e-4)
    x[:, 0], x[:, 2] = 1, 1e21
    hessian = backend.numpy(numbacalib.gptq_hessian_update(zeros, backend.array(x)))
    assert np.isinf(hessian[2, 2])
    assert np.isfinite(hessian[:2, :2]).all()
