import cases
import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numbacalib
from numbacalib.linalg import factor_hessians
from numbacalib.ops.matrix import to_host


@given(
    size=st.integers(1, 20),
    seed=st.integers(0, 999),
    dtype=st.sampled_from(cases.DTYPES),
    layout=st.sampled_from(cases.LAYOUTS),
    percdamp=st.sampled_from([0.01, 0.1, 1.0]),
)
def test_inverse_factor_agrees_with_the_definition(size, seed, dtype, layout, percdamp):
    hessian = cases.laid_out(cases.random_hessian(seed, size).astype(dtype), layout)
    kept = hessian.copy()
    factor = numbacalib.gptq_inverse_hessian(hessian, percdamp=percdamp)
    expected = naive.gptq_inverse_hessian(hessian, percdamp)
    assert factor.dtype == cases.result_dtype(hessian)
    assert factor.flags.c_contiguous
    np.testing.assert_array_equal(factor, np.triu(factor))
    np.testing.assert_array_equal(hessian, kept)
    condition = np.linalg.cond(np.linalg.inv(expected.T @ expected))
    limit = 10 * size * np.finfo(factor.dtype).eps * condition
    assert np.abs(factor - expected).max() <= limit * np.abs(expected).max()


@pytest.mark.parametrize("size", [129, 192, 193, 300, 577])
def test_factor_of_the_hessian(size):
    hessian = cases.random_hessian(1, size)
    factors = factor_hessians(hessian[None], [0.02])
    (upper,), (damping,) = factors.upper, factors.dampings
    damped = hessian + damping * np.eye(size)
    assert damping == pytest.approx(0.02 * np.diagonal(hessian).mean())
    np.testing.assert_array_equal(upper, np.triu(upper))
    np.testing.assert_allclose(upper @ upper.T, damped, atol=1e-12 * damped.max())


def test_dead_channels_get_one():
    hessian = cases.random_hessian(1, 6)
    hessian[2] = hessian[:, 2] = 0
    factors = factor_hessians(hessian[None], [0.01])
    np.testing.assert_array_equal(factors.dead[0], [False, False, True, False, False, False])
    inverse = numbacalib.gptq_inverse_hessian(hessian)
    np.testing.assert_allclose(inverse, naive.gptq_inverse_hessian(hessian), rtol=1e-9, atol=1e-12)
    assert inverse[2, 2] == 1


def test_all_channels_dead():
    np.testing.assert_array_equal(numbacalib.gptq_inverse_hessian(np.zeros((3, 3))), np.eye(3))


def test_failure_says_damping_smallest_entry_and_what_to_try():
    rank_one = np.outer([1.0, 2.0, 4.0], [1.0, 2.0, 4.0]) * 1e8
    rank_one[0, 0] = 0.5
    with pytest.raises(
        np.linalg.LinAlgError, match=r"percdamp 0\).*smallest.*0\.5.*raise percdamp"
    ):
        numbacalib.gptq_inverse_hessian(rank_one, percdamp=0)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"hessian: expected shape \[2, 2\], got \[2, 3\]"):
        numbacalib.gptq_inverse_hessian(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"hessian: expected finite values, got nan at \[0, 1\]"):
        numbacalib.gptq_inverse_hessian(np.array([[1, np.nan], [np.nan, 1]]))
    with pytest.raises(ValueError, match="percdamp: expected a number not below 0, got -1"):
        numbacalib.gptq_inverse_hessian(np.eye(2), percdamp=-1)


def test_factors_of_many_hessians(backend):
    """Each with its own damping; one that is not positive definite does not hurt the others."""
    size = 6 if backend.name == "cudasim" else 300
    hessians = np.stack([cases.random_hessian(seed, size) for seed in range(5)])
    hessians[2] -= 2 * np.diag(np.diagonal(hessians[2]))
    hessians[3, 4] = hessians[3, :, 4] = 0
    percdamps = [0.01, 0.02, 0.01, 0.1, 1.0]
    found = factor_hessians(backend.array(hessians), percdamps)
    uppers = to_host(found.upper)
    assert [minor > 0 for minor in found.minors] == [False, False, True, False, False]
    assert found.dead_counts == [0, 0, 0, 1, 0]
    for e in (0, 1, 3, 4):
        damping = percdamps[e] * np.diagonal(hessians[e]).mean()
        assert found.dampings[e] == pytest.approx(damping)
        damped = hessians[e] + damping * np.eye(size)
        if e == 3:
            damped[4, 4] = 1
        np.testing.assert_array_equal(uppers[e], np.triu(uppers[e]))
        np.testing.assert_allclose(uppers[e] @ uppers[e].T, damped, atol=1e-12 * damped.max())
        pivots = np.delete(np.diagonal(uppers[e]), 4 if e == 3 else []) ** 2
        mean = np.diagonal(hessians[e]).mean()
        assert found.smallest_pivots[e] == pytest.approx(pivots.min() / mean)


def test_channels_are_put_into_an_order(backend):
    """As if the Hessians came in that order; dead channels are told as they come."""
    size = 6 if backend.name == "cudasim" else 300
    hessians = np.stack([cases.random_hessian(seed, size) for seed in range(2)])
    hessians[1, 4] = hessians[1, :, 4] = 0
    generator = np.random.default_rng(1)
    orders = np.stack([generator.permutation(size) for _ in range(2)])
    found = factor_hessians(backend.array(hessians), [0.01, 0.02], orders=backend.array(orders))
    permuted = np.stack([h[np.ix_(o, o)] for h, o in zip(hessians, orders, strict=True)])
    expected = factor_hessians(backend.array(permuted), [0.01, 0.02])
    upper = to_host(found.upper)
    np.testing.assert_allclose(upper, to_host(expected.upper), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(np.argwhere(to_host(found.dead)), [[1, 4]])
    np.testing.assert_array_equal(found.diagonals, np.diagonal(permuted, axis1=1, axis2=2))
    np.testing.assert_array_equal(found.roots, np.diagonal(upper, axis1=1, axis2=2))
    assert found.smallest_pivots == pytest.approx(expected.smallest_pivots)
    assert found.dead_counts == [0, 1]


def test_error_names_the_channel_as_it_came(backend):
    hessian = np.eye(6)
    hessian[2, 2] = -1
    orders = np.array([[3, 2, 5, 1, 0, 4]])
    found = factor_hessians(backend.array(hessian[None]), [0.0], orders=backend.array(orders))
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite at channel 2 "):
        raise found.error(0, "hessian", 0.0)
