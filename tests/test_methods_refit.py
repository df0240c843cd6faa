"""Scales refitted to codes, on every backend."""

import cases
import ml_dtypes
import naive
import naive_targets
import numpy as np
import pytest

from numbacalib.methods import awq_clip, gptq, refit_scales, rtn
from numbacalib.runtime.half import carrier
from numbacalib.spec.scale_refit import refit_row

ORDERED = {"act_order": "desc", "static_groups": True}
CHOICES = {
    "rtn": lambda w, h, **grid: rtn(w, **grid),
    "clipped": lambda w, h, **grid: awq_clip(w, h, **grid),
    "gptq": lambda w, h, **grid: gptq(w, h, **grid),
    "static groups": lambda w, h, **grid: gptq(w, h, **grid, **ORDERED),
    "ordered groups": lambda w, h, **grid: gptq(w, h, **grid, act_order="desc"),
}


def layer(seed, rows=6, channels=16):
    weight = cases.random_matrix(seed, (rows, channels), np.float32)
    return weight, cases.random_hessian(seed + 1, channels).astype(np.float32)


def quantized_on(backend, how, weight, hessian, **grid):
    there = backend.array(weight), backend.array(hessian)
    quantized = CHOICES[how](*there, **grid)
    return quantized.to_host(), refit_scales(there[0], quantized, there[1]).to_host()


def loss(weight, quantized, hessian):
    values = quantized.dequantize(np.float64)
    return naive.proxy_loss(weight.astype(np.float64), values, hessian.astype(np.float64))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [4, None])
@pytest.mark.parametrize("how", CHOICES)
def test_refit_is_least_squares_and_never_raises_the_loss(backend, how, group_size, symmetric):
    weight, hessian = layer(5)
    grid = {"bits": 3, "group_size": group_size, "symmetric": symmetric, "scale_dtype": np.float32}
    before, after = quantized_on(backend, how, weight, hessian, **grid)
    np.testing.assert_array_equal(after.codes, before.codes)
    np.testing.assert_array_equal(after.zeros, before.zeros)
    assert loss(weight, after, hessian) < loss(weight, before, hessian)
    for i in range(len(weight)):
        expected = naive_targets.refitted_row(
            weight[i].astype(np.float64), before.codes[i], before.zeros[i], before.scales[i],
            before.group_of, hessian.astype(np.float64), np.float32,
        )  # fmt: skip
        np.testing.assert_allclose(after.scales[i], expected, rtol=2e-3)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_no_row_loses_by_it_in_the_dtype_that_stores_its_scales(backend, seed, dtype):
    weight, hessian = layer(seed)
    grid = {"bits": 4, "group_size": 4, "scale_dtype": dtype}
    before, after = quantized_on(backend, "gptq", weight, hessian, **grid)
    assert after.scales.dtype == dtype
    for i in range(len(weight)):
        losses = [
            naive.proxy_loss(
                weight[i : i + 1].astype(np.float64),
                (q.codes[i].astype(float) - q.zeros[i].astype(float)[q.group_of])[None]
                * q.scales[i].astype(np.float64)[q.group_of],
                hessian.astype(np.float64),
            )
            for q in (before, after)
        ]
        changed = (after.scales[i] != before.scales[i]).any()
        assert losses[1] < losses[0] if changed else losses[1] == losses[0]


def test_float64_finds_the_least_of_all_scales():
    weight, hessian = (a.astype(np.float64) for a in layer(11, rows=3, channels=6))
    quantized = rtn(weight, bits=2, group_size=2, scale_dtype=np.float32)
    found = refit_scales(weight, quantized, hessian)
    factors = np.linspace(0.5, 1.5, 21)
    for i in range(3):
        row = weight[i], quantized.codes[i].astype(float), quantized.zeros[i].astype(float)
        scales = quantized.scales[i], quantized.group_of, hessian
        least = naive_targets.best_scales_on_lattice(*row, *scales, factors)
        basis = (found.codes[i] - found.zeros[i].astype(float)[found.group_of]) * found.scales[i][
            found.group_of
        ]
        error = weight[i] - basis
        assert error @ hessian @ error <= least * (1 + 1e-6)


@pytest.mark.parametrize(
    ("pulls", "expected"),
    [
        ((0.5, 0.25), (1.5, 2.25)),  # the best of independent groups
        ((0.5, -3), (1.5, 2)),  # a sign that would change
        ((1e-5, 0), (1, 2)),  # no change is left by float16
        ((0.5, -2 + 1e-9), (1, 2)),  # float16 makes 0 of a scale: nothing of the row changes
    ],
)
def test_a_row_takes_scales_that_lose_less_as_they_are_stored(pulls, expected):
    scales, found = np.array([1, 2], np.float16), np.empty(2, np.float16)
    given = np.eye(2), np.array(pulls, np.float64)
    refit_row(*given, carrier(scales), carrier(found), (np.empty(2), np.empty(2)))
    np.testing.assert_array_equal(found, np.array(expected, np.float16))


def test_scales_that_codes_do_not_determine_stay(backend):
    weight, hessian = layer(3)
    weight[:, 4:8] = 0
    hessian[8:12] = hessian[:, 8:12] = 0  # no token excites them
    grid = {"bits": 3, "group_size": 4, "scale_dtype": np.float16}
    before, after = quantized_on(backend, "rtn", weight, hessian, **grid)
    np.testing.assert_array_equal(after.scales[:, 1:3], before.scales[:, 1:3])
    assert np.isfinite(after.scales).all()
    assert (after.scales[:, 0] != before.scales[:, 0]).any()
    nothing = np.zeros_like(hessian)
    before, after = quantized_on(backend, "rtn", weight, nothing, **grid)
    np.testing.assert_array_equal(after.scales, before.scales)


def test_same_bits_every_time(backend):
    weight, hessian = layer(8)
    grid = {"bits": 3, "group_size": 4}
    runs = [quantized_on(backend, "static groups", weight, hessian, **grid)[1] for _ in range(2)]
    np.testing.assert_array_equal(*(run.scales for run in runs))


def test_the_order_of_the_channels_does_not_matter(backend):
    """Of those within a group, and of groups: scales go with them."""
    weight, hessian = (array.astype(np.float64) for array in layer(8))
    grid = {"bits": 3, "group_size": 4, "scale_dtype": np.float32}
    _, plain = quantized_on(backend, "rtn", weight, hessian, **grid)
    rng = np.random.default_rng(3)
    groups = rng.permutation(4)
    order = np.concatenate([4 * g + rng.permutation(4) for g in groups])
    moved = weight[:, order], hessian[np.ix_(order, order)]
    _, permuted = quantized_on(backend, "rtn", *moved, **grid)
    np.testing.assert_allclose(permuted.scales, plain.scales[:, groups], rtol=1e-6)


def test_bad_arguments_are_named():
    weight, hessian = layer(1)
    quantized = rtn(weight, bits=4, group_size=4)
    with pytest.raises(ValueError, match=r"weight: expected shape \[6, 16\], got \[5, 16\]"):
        refit_scales(weight[:5], quantized, hessian)
    with pytest.raises(ValueError, match=r"hessian: expected shape \[16, 16\], got \[4, 4\]"):
        refit_scales(weight, quantized, hessian[:4, :4])
    hessian[2, 3] = np.nan
    with pytest.raises(ValueError, match=r"hessian: expected finite values, got nan at \[2, 3\]"):
        refit_scales(weight, quantized, hessian)
