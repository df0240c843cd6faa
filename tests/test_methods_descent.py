"""Codes chosen anew, on every backend."""

import dataclasses

import cases
import naive
import naive_methods
import numpy as np
import pytest

from numbacalib.methods import RangeSearch, descend_codes, gptq, refit_scales, rtn


def layer(seed, rows=6, channels=16):
    weight = cases.random_matrix(seed, (rows, channels), np.float32)
    return weight, cases.random_hessian(seed + 1, channels).astype(np.float32)


def damped(hessian, percdamp):
    wide = hessian.astype(np.float64)
    return wide + percdamp * np.diagonal(wide).mean() * np.eye(len(wide))


def values_of(quantized):
    scales = quantized.scales.astype(np.float64)[:, quantized.group_of]
    zeros = quantized.zeros.astype(np.float64)[:, quantized.group_of]
    return (quantized.codes.astype(np.float64) - zeros) * scales


def row_losses(weight, quantized, hessian):
    errors = weight - values_of(quantized)
    return np.einsum("ij,jk,ik->i", errors, hessian, errors)


GRIDS = {
    "asymmetric": {},
    "symmetric": {"symmetric": True},
    "full range": {"symmetric": True, "search": RangeSearch(points=1, full_range=True)},
}


def naive_codes(weight, quantized, hessian, percdamp, passes):
    grid = quantized.codes, quantized.scales, quantized.zeros, quantized.group_of, quantized.bits
    return naive_methods.descended_codes(weight, *grid, damped(hessian, percdamp), passes)


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("how", [rtn, gptq])
def test_each_code_is_the_best_while_the_later_ones_stay(backend, how, grid, passes):
    """Compared with every code that there is, in float64; more columns than kernels take at once."""
    weight, hessian = (array.astype(np.float64) for array in layer(3, rows=7, channels=40))
    there = backend.array(weight), backend.array(hessian)
    given = there if how is gptq else there[:1]
    quantized = how(*given, bits=3, group_size=4, **GRIDS[grid])
    found = descend_codes(there[0], quantized, there[1], passes=passes, percdamp=0.02).to_host()
    before = quantized.to_host()
    expected = naive_codes(weight, before, hessian, 0.02, passes)
    np.testing.assert_array_equal(found.codes, expected)
    np.testing.assert_array_equal(found.scales, before.scales)
    assert (found.codes != before.codes).any()


LARGE = {"cudasim": (5, 40)}
"""Rows and channels that fill no block of a kernel; of few, the simulator's."""


@pytest.mark.parametrize("zeros", ["integers", "biases"])
@pytest.mark.parametrize("passes", [1, 3])
def test_large_layers_in_float32_differ_in_ties_alone(backend, zeros, passes):
    rows, channels = LARGE.get(backend.name, (530, 1100))
    weight, hessian = layer(8, rows, channels)
    there = backend.array(weight), backend.array(hessian)
    quantized = gptq(*there, bits=3, group_size=channels // 20, act_order="desc")
    quantized = refit_scales(there[0], quantized, there[1], zeros=zeros)
    options = {"passes": passes, "percdamp": 0.02}
    found = descend_codes(there[0], quantized, there[1], **options).to_host()
    again = descend_codes(there[0], quantized, there[1], **options).to_host()
    assert again == found
    before, square = quantized.to_host(), damped(hessian, 0.02)
    expected = naive_codes(weight, before, hessian, 0.02, passes)
    losses = row_losses(weight, found, square)
    assert (losses <= row_losses(weight, before, square) * (1 + 1e-6)).all()
    wanted = dataclasses.replace(found, codes=expected)
    assert losses.sum() == pytest.approx(row_losses(weight, wanted, square).sum(), rel=2e-3)
    if passes == 1:
        assert_first_differences_are_ties(weight, wanted, found, before, square)


def assert_first_differences_are_ties(weight, wanted, found, before, square):
    """The columns before the first that differs went alike, and those after it were as at first."""
    for i in np.flatnonzero((wanted.codes != found.codes).any(axis=1)):
        first = int(np.argmax(wanted.codes[i] != found.codes[i]))
        losses = []
        for each in (wanted, found):
            codes = np.concatenate([each.codes[i, : first + 1], before.codes[i, first + 1 :]])
            errors = weight[i] - values_of(dataclasses.replace(before, codes=codes[None]))[i]
            losses.append(errors @ square @ errors)
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("act_order", ["none", "desc"])
def test_the_loss_falls_until_no_code_changes(backend, act_order):
    weight, hessian = layer(6, channels=24)
    there = backend.array(weight), backend.array(hessian)
    quantized = gptq(*there, bits=2, group_size=8, act_order=act_order)
    square = damped(hessian, 0.01)
    losses = [row_losses(weight, quantized.to_host(), square)]
    for _ in range(20):
        again = descend_codes(there[0], quantized, there[1])
        losses.append(row_losses(weight, again.to_host(), square))
        assert (losses[-1] <= losses[-2] * (1 + 1e-5)).all()
        if again == quantized:
            break
        quantized = again
    else:
        pytest.fail("codes still change after 20 passes")
    assert losses[-1].sum() < 0.98 * losses[0].sum()


def test_passes_and_refits_together_lower_the_loss(backend):
    weight, hessian = layer(2)
    there = backend.array(weight), backend.array(hessian)
    quantized = gptq(*there, bits=3, group_size=4)
    refitted = refit_scales(there[0], quantized, there[1])
    both = refit_scales(there[0], descend_codes(there[0], refitted, there[1], percdamp=0), there[1])
    wide = hessian.astype(np.float64)
    losses = [
        naive.proxy_loss(weight.astype(np.float64), values_of(each.to_host()), wide)
        for each in (quantized, refitted, both)
    ]
    assert losses[2] < losses[1] < losses[0]


def test_codes_that_no_token_excites_stay(backend):
    weight, hessian = layer(4)
    hessian[8:12] = hessian[:, 8:12] = 0
    there = backend.array(weight), backend.array(hessian)
    quantized = rtn(there[0], bits=3, group_size=4)
    found = descend_codes(there[0], quantized, there[1], percdamp=0).to_host()
    np.testing.assert_array_equal(found.codes[:, 8:12], quantized.to_host().codes[:, 8:12])
    again = descend_codes(there[0], quantized, there[1], percdamp=0).to_host()
    assert again == found


def test_bad_arguments_are_named():
    weight, hessian = layer(1)
    quantized = rtn(weight, bits=4, group_size=4)
    with pytest.raises(ValueError, match=r"weight: expected shape \[6, 16\], got \[5, 16\]"):
        descend_codes(weight[:5], quantized, hessian)
    with pytest.raises(ValueError, match="percdamp: expected a number not below 0, got -1"):
        descend_codes(weight, quantized, hessian, percdamp=-1)
    with pytest.raises(ValueError, match="passes: expected 1 to 1000, got 0"):
        descend_codes(weight, quantized, hessian, passes=0)
