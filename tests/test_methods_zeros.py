"""Zeros refitted to codes, on every backend."""

import cases
import ml_dtypes
import naive_targets
import numpy as np
import pytest

from numbacalib.methods import gptq, refit_scales, rtn
from numbacalib.spec.zero_refit import RowMoments, follow

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32]


def layer(seed, rows=6, channels=16):
    weight = cases.random_matrix(seed, (rows, channels), np.float32)
    return weight, cases.random_hessian(seed + 1, channels).astype(np.float32)


def shifted_layer(seed, channels):
    """Rows whose weights lie on one side of 0 more than on the other."""
    weight, hessian = layer(seed, channels=channels)
    weight += 0.4 * np.abs(weight).max() * np.linspace(-1, 1, 6, dtype=np.float32)[:, None]
    return weight, hessian


def refitted(backend, weight, hessian, zeros, how=rtn, least_zero=0, **grid):
    there = backend.array(weight), backend.array(hessian)
    given = there if how is gptq else there[:1]
    quantized = how(*given, **grid)
    found = refit_scales(there[0], quantized, there[1], zeros=zeros, least_zero=least_zero)
    return quantized.to_host(), found.to_host()


def row_losses(weight, quantized, hessian):
    scales = quantized.scales.astype(np.float64)[:, quantized.group_of]
    zeros = quantized.zeros.astype(np.float64)[:, quantized.group_of]
    errors = weight - (quantized.codes.astype(np.float64) - zeros) * scales
    return np.einsum("ij,jk,ik->i", errors, hessian.astype(np.float64), errors)


def moments_of(centered, ones, errors, hessian):
    """Of rows that are 0 outside of their groups."""
    upper = np.triu(centered @ hessian @ centered.T)
    mixed, squares = centered @ hessian @ ones.T, ones @ hessian @ ones.T
    pulls = centered @ hessian @ errors, ones @ hessian @ errors
    return RowMoments(upper, mixed, squares, *pulls)


def test_moments_follow_the_grid():
    """What a search leaves is what products with the new grid would give."""
    rng = np.random.default_rng(12)
    hessian, errors = cases.random_hessian(13, 12), rng.normal(size=12)
    ones = np.kron(np.eye(3), np.ones(4))
    centered = ones * rng.integers(-7, 8, 12)
    scales, steps = rng.uniform(0.5, 2, 3), rng.normal(size=3) * 0.1
    moves = np.array([1, 0, -3])
    found = moments_of(centered, ones, errors, hessian)
    follow(found, scales, steps, moves)
    moved = centered - moves[:, None] * ones
    left = errors - (scales @ moved - (scales - steps) @ centered)
    for own, wanted in zip(found, moments_of(moved, ones, left, hessian), strict=True):
        np.testing.assert_allclose(own, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("least_zero", [0, 1])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_a_row_of_one_group_has_the_best_of_all_integer_zeros(backend, seed, bits, least_zero):
    weight, hessian = shifted_layer(seed, channels=8)
    grid = {"bits": bits, "group_size": None, "scale_dtype": np.float32}
    before, after = refitted(backend, weight, hessian, "integers", least_zero=least_zero, **grid)
    assert after.zeros.dtype == np.uint8
    losses = row_losses(weight, after, hessian)
    wide = weight.astype(np.float64), hessian.astype(np.float64)
    for i in range(len(weight)):
        allowed = {*range(least_zero, 2**bits), int(before.zeros[i, 0])}
        row = wide[0][i], before.codes[i], wide[1], sorted(allowed)
        least = naive_targets.least_with_integer_zero(*row)
        np.testing.assert_allclose(losses[i], least, rtol=1e-4)


@pytest.mark.parametrize("how", [rtn, gptq])
def test_no_other_zero_of_one_group_loses_less(backend, how):
    """Whatever its scale, the other groups as they are: what the search goes through."""
    weight, hessian = layer(7)
    grid = {"bits": 3, "group_size": 4, "scale_dtype": np.float32}
    before, after = refitted(backend, weight, hessian, "integers", how, **grid)
    losses = row_losses(weight, after, hessian)
    assert (losses <= row_losses(weight, before, hessian)).all()
    assert (after.zeros != before.zeros).any()
    for i in range(len(weight)):
        for g in range(4):
            left = weight[i].astype(np.float64)
            for h in {0, 1, 2, 3} - {g}:
                own = slice(4 * h, 4 * h + 4)
                values = after.codes[i, own].astype(float) - after.zeros[i, h]
                left[own] -= values * float(after.scales[i, h])
            codes = after.codes[i].astype(np.float64)
            inside = np.arange(16) // 4 == g
            for zero in range(8):
                basis = np.where(inside, codes - zero, 0)
                length = basis @ hessian @ basis
                scale = basis @ hessian @ left / length if length > 0 else 0.0
                error = left - max(scale, 0) * basis
                assert losses[i] <= (error @ hessian @ error) * (1 + 1e-3)


@pytest.mark.parametrize("group_size", [4, None])
def test_real_zeros_are_least_squares(backend, group_size):
    weight, hessian = layer(5)
    grid = {"bits": 3, "group_size": group_size, "scale_dtype": np.float32}
    before, after = refitted(backend, weight, hessian, "biases", **grid)
    assert after.zeros.dtype == np.float32
    losses = row_losses(weight, after, hessian)
    for i in range(len(weight)):
        row = weight[i].astype(np.float64), before.codes[i], before.group_of
        least = naive_targets.least_with_real_zeros(*row, hessian.astype(np.float64))
        np.testing.assert_allclose(losses[i], least, rtol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("zeros", ["integers", "biases"])
@pytest.mark.parametrize("how", [rtn, gptq])
def test_no_row_loses_by_it_as_it_is_stored(backend, how, zeros, dtype):
    for seed in range(3):
        weight, hessian = layer(seed)
        grid = {"bits": 4, "group_size": 4, "scale_dtype": dtype}
        before, after = refitted(backend, weight, hessian, zeros, how, **grid)
        assert after.scales.dtype == dtype
        losses = [row_losses(weight, each, hessian) for each in (before, after)]
        assert (losses[1] <= losses[0] * (1 + 1e-6)).all()
        assert losses[1].sum() < losses[0].sum()
        if zeros == "biases":  # a format that stores biases has these
            biases = -after.zeros * after.scales.astype(np.float32)
            np.testing.assert_allclose(biases, biases.astype(dtype).astype(np.float32), rtol=1e-6)


LARGE = {"cudasim": (5, 40)}
"""Rows and channels of a layer whose products tensor cores make; of few, the simulator's."""


@pytest.mark.parametrize("zeros", ["kept", "integers"])
def test_large_layers_lose_as_much_as_in_float64(backend, zeros):
    weight, hessian = layer(20, *LARGE.get(backend.name, (530, 1100)))
    weight += 0.3
    grid = {"bits": 3, "group_size": weight.shape[1] // 20, "scale_dtype": np.float32}
    before, after = refitted(backend, weight, hessian, zeros, gptq, **grid)
    exactly = refit_scales(weight.astype(np.float64), before, hessian, zeros=zeros)
    losses = [row_losses(weight, each, hessian) for each in (before, after, exactly)]
    assert (losses[1] <= losses[0] * (1 + 1e-6)).all()
    assert losses[1].sum() < 0.99 * losses[0].sum()
    assert losses[1].sum() == pytest.approx(losses[2].sum(), rel=1e-3)


@pytest.mark.parametrize("zeros", ["integers", "biases"])
def test_free_zeros_lose_no_more_than_kept_ones(backend, zeros):
    weight, hessian = layer(7)
    grid = {"bits": 3, "group_size": 4, "scale_dtype": np.float32}
    _, kept = refitted(backend, weight, hessian, "kept", **grid)
    _, free = refitted(backend, weight, hessian, zeros, **grid)
    losses = [row_losses(weight, each, hessian) for each in (kept, free)]
    assert (losses[1] <= losses[0] * (1 + 1e-5)).all()
    assert losses[1].sum() < 0.999 * losses[0].sum()


@pytest.mark.parametrize("zeros", ["integers", "biases"])
def test_grids_that_codes_do_not_determine_stay(backend, zeros):
    weight, hessian = layer(3)
    hessian[8:12] = hessian[:, 8:12] = 0  # no token excites them
    grid = {"bits": 3, "group_size": 4, "scale_dtype": np.float16}
    before, after = refitted(backend, weight, hessian, zeros, **grid)
    np.testing.assert_array_equal(after.scales[:, 2], before.scales[:, 2])
    np.testing.assert_allclose(after.zeros[:, 2], before.zeros[:, 2], rtol=1e-3)
    assert np.isfinite(after.scales).all()
    assert np.isfinite(after.zeros).all()
    assert (after.zeros[:, 0] != before.zeros[:, 0]).any()


@pytest.mark.parametrize("zeros", ["integers", "biases"])
def test_groups_out_of_order_and_the_same_bits_every_time(backend, zeros):
    weight, hessian = layer(8)
    there = backend.array(weight), backend.array(hessian)
    quantized = gptq(*there, bits=3, group_size=4, act_order="desc")
    assert quantized.g_idx is not None
    runs = [refit_scales(there[0], quantized, there[1], zeros=zeros).to_host() for _ in range(2)]
    assert runs[0] == runs[1]
    losses = [row_losses(weight, each, hessian) for each in (quantized.to_host(), runs[0])]
    assert (losses[1] <= losses[0] * (1 + 1e-6)).all()
    assert losses[1].sum() < losses[0].sum()


def test_signed_scales_are_refitted_too(backend):
    """Those of a symmetric grid over its full range, of either sign."""
    from numbacalib.methods import RangeSearch

    weight, hessian = layer(4)
    search = RangeSearch(points=1, full_range=True)
    grid = {"bits": 3, "group_size": 4, "symmetric": True, "search": search}
    before, after = refitted(backend, weight, hessian, "kept", **grid)
    assert (np.sign(after.scales) == np.sign(before.scales)).all()
    assert (before.scales < 0).any()
    losses = [row_losses(weight, each, hessian) for each in (before, after)]
    assert (losses[1] < losses[0]).all()


def test_bad_arguments_are_named():
    weight, hessian = layer(1)
    quantized = rtn(weight, bits=4, group_size=4)
    with pytest.raises(ValueError, match=r"zeros: expected kept, integers or biases, got 'free'"):
        refit_scales(weight, quantized, hessian, zeros="free")
    with pytest.raises(ValueError, match=r"least_zero: expected 0 to 15, got 16"):
        refit_scales(weight, quantized, hessian, zeros="integers", least_zero=16)
    symmetric = rtn(weight, bits=4, group_size=4, symmetric=True)
    with pytest.raises(
        ValueError, match=r"zeros: expected kept on a symmetric grid, got 'integers'"
    ):
        refit_scales(weight, symmetric, hessian, zeros="integers")
    real = refit_scales(weight, quantized, hessian, zeros="biases")
    with pytest.raises(TypeError, match=r"zeros: expected integers to begin with, got float32"):
        refit_scales(weight, real, hessian, zeros="integers")
