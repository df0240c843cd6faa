"""The target that makes up for the quantized layers before, on every backend."""

import cases
import naive
import naive_targets
import numpy as np
import pytest

from numbacalib.methods import gptq, output_loss, propagated_target, refit_scales, rtn
from numbacalib.methods.target import propagated_targets, start_output_losses
from numbacalib.statistics import InputStatistics


def streams(seed, tokens=60, channels=12, rows=5, drift=0.3):
    """Original and present inputs of the same tokens, and what the original stream has more."""
    rng = np.random.default_rng(seed)
    original = rng.normal(size=(tokens, channels)) @ rng.normal(size=(channels, channels))
    inputs = original + drift * rng.normal(size=(tokens, channels))
    return original, inputs, drift * rng.normal(size=(tokens, rows)) + inputs[:, :rows] * 0.1


def moments(original, inputs, residual):
    return (
        naive_targets.moment(inputs, inputs),
        naive_targets.moment(original, inputs),
        naive_targets.moment(residual, inputs),
    )


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(("strength", "shrinkage"), [(0.0, 0), (0.25, 0.1), (1.0, 0), (0.5, 1.0)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_target_is_the_definition(backend, dtype, strength, shrinkage, with_residual):
    weight = cases.random_matrix(3, (5, 12))
    hessian, cross, residual = moments(*streams(0))
    residual = residual if with_residual else None
    arrays = (a if a is None else a.astype(dtype) for a in (weight, hessian, cross, residual))
    options = {"strength": strength, "percdamp": 0.01, "shrinkage": shrinkage}
    actual = backend.call(propagated_target, *arrays, **options)
    assert actual.dtype == dtype
    expected = naive_targets.propagated_target(weight, hessian, cross, residual, **options)
    atol = {np.float32: 2e-4, np.float64: 1e-10}[dtype] * abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_weight_is_nearer_to_the_original_outputs(seed, with_residual):
    original, inputs, residual = streams(seed)
    weight = cases.random_matrix(seed + 50, (5, 12))
    hessian, cross, moment = moments(original, inputs, residual)
    given, kept = (residual, moment) if with_residual else (None, None)
    best = propagated_target(weight, hessian, cross, kept, percdamp=0.0)

    def loss(values):
        return naive_targets.loss_to_original(weight, values, original, inputs, given)

    least = loss(best)
    assert least < loss(weight)
    rng = np.random.default_rng(seed)
    for size in (1e-3, 1e-1):
        for _ in range(5):
            other = best + size * rng.normal(size=best.shape)
            assert loss(other) > least
    # what is above the least loss is the proxy loss against the target
    other = best + rng.normal(size=best.shape)
    above = naive.proxy_loss(best, other, hessian)
    assert loss(other) - least == pytest.approx(above, rel=1e-8)


def test_the_order_of_the_channels_does_not_matter_and_bits_stay_the_same(backend):
    """Of W, H, C and the residual term alike; in float64, where rounding is below the tolerance."""
    weight = cases.random_matrix(3, (5, 12))
    hessian, cross, residual = moments(*streams(1))
    order = np.random.default_rng(2).permutation(12)
    plain = backend.call(propagated_target, weight, hessian, cross, residual)
    moved = weight[:, order], hessian[np.ix_(order, order)], cross[np.ix_(order, order)]
    permuted = backend.call(propagated_target, *moved, residual[:, order])
    np.testing.assert_allclose(permuted, plain[:, order], rtol=1e-9, atol=1e-9)
    again = backend.call(propagated_target, weight, hessian, cross, residual)
    np.testing.assert_array_equal(again, plain)


@pytest.mark.parametrize("rows", [(5, 20), (20, 3)])
def test_layers_that_share_an_input_have_the_targets_that_they_have_alone(backend, rows):
    """Whether more rows or more channels: the systems that are solved differ, their solutions do not."""
    hessian, cross, _ = moments(*streams(4))
    weights = [cases.random_matrix(seed, (count, 12)) for seed, count in enumerate(rows)]
    arrays = [backend.array(array) for array in (*weights, hessian, cross)]
    named = {f"layer {i}": weight for i, weight in enumerate(arrays[:2])}
    found = propagated_targets(named, *arrays[2:], None, 0.5, 0.01, 5)
    for weight, actual in zip(weights, found, strict=True):
        options = {"strength": 0.5, "percdamp": 0.01}
        expected = naive_targets.propagated_target(weight, hessian, cross, **options)
        np.testing.assert_allclose(backend.numpy(actual), expected, rtol=0, atol=1e-9)


def test_equal_streams_and_dead_channels_leave_the_weight(backend):
    original, _, _ = streams(1)
    original[:, 4] = 0
    weight = cases.random_matrix(2, (5, 12), np.float32)
    hessian = naive_targets.moment(original, original).astype(np.float32)
    np.testing.assert_array_equal(backend.call(propagated_target, weight, hessian, hessian), weight)
    inputs = original + 0.1 * cases.random_matrix(5, original.shape)
    inputs[:, 4] = 0
    hessian, cross = (naive_targets.moment(a, inputs) for a in (inputs, original))
    arrays = weight, hessian.astype(np.float32), cross.astype(np.float32)
    target = backend.call(propagated_target, *arrays)
    np.testing.assert_array_equal(target[:, 4], weight[:, 4])
    assert (target != weight).any()


@pytest.mark.parametrize("layout", ["F", "row step", "window"])
def test_arrays_of_any_strides(backend, layout):
    hessian, cross, residual = moments(*streams(0))
    weight = cases.random_matrix(3, (5, 12))
    given = [array.astype(np.float32) for array in (weight, hessian, cross, residual)]
    laid_out = [cases.laid_out(array, layout) for array in given]
    target, expected = (backend.call(propagated_target, *arrays) for arrays in (laid_out, given))
    np.testing.assert_allclose(target, expected, rtol=1e-5)
    there = [backend.array(array) for array in laid_out]
    quantized = rtn(there[0], bits=3, group_size=4)
    refitted = refit_scales(there[0], quantized, there[1]).to_host()
    plain = backend.array(given[0]), backend.array(given[1])
    expected = refit_scales(plain[0], quantized, plain[1]).to_host()
    np.testing.assert_allclose(refitted.scales, expected.scales, rtol=2e-3)
    statistics, others = InputStatistics(12), InputStatistics(12)
    original, inputs, residual = (array.astype(np.float32) for array in streams(1))
    statistics.update(
        *(backend.array(cases.laid_out(a, layout)) for a in (inputs, original, residual))
    )
    others.update(*(backend.array(a) for a in (inputs, original, residual)))
    for kind in others.companions:
        actual, wanted = (backend.numpy(getattr(s, kind)) for s in (statistics, others))
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5 * abs(wanted).max())


def test_loss_is_measured_to_the_original_outputs(backend):
    original, inputs, _ = streams(2, drift=0.1)
    weight = cases.random_matrix(7, (5, 12), np.float32)
    statistics = InputStatistics(12)
    given = (backend.array(a.astype(np.float32)) for a in (inputs, original))
    statistics.update(*given)
    there = backend.array(weight)
    quantized = rtn(there, bits=4, group_size=4)
    values = backend.numpy(quantized.dequantize())
    expected = naive_targets.loss_to_original(weight.astype(np.float64), values, original, inputs)
    assert output_loss(there, quantized, statistics) == pytest.approx(expected, rel=1e-4)
    coarse = rtn(there, bits=2, group_size=4)
    both = start_output_losses(there, [quantized, coarse], statistics)()
    assert both == [output_loss(there, each, statistics) for each in (quantized, coarse)]


@pytest.mark.parametrize("seed", range(4))
def test_quantizing_the_target_loses_less_of_the_original_outputs(seed):
    original, inputs, _ = streams(seed, tokens=200, drift=0.4)
    weight = cases.random_matrix(seed + 9, (16, 12))
    hessian, cross = (naive_targets.moment(a, inputs) for a in (inputs, original))
    losses = []
    for strength in (0.0, 1.0):
        target = propagated_target(weight, hessian, cross, strength=strength)
        quantized = gptq(target, hessian, bits=4, group_size=12)
        values = quantized.dequantize(np.float64)
        losses.append(naive_targets.loss_to_original(weight, values, original, inputs))
    assert losses[1] < losses[0]


def test_bad_arguments_are_named():
    hessian, cross, residual = moments(*streams(0))
    weight = cases.random_matrix(1, (5, 12))
    for arrays, options, message in [
        ((weight, hessian[:5], cross), {}, r"hessian: expected shape \[12, 12\]"),
        ((weight, hessian, cross[:5]), {}, r"cross: expected shape \[12, 12\]"),
        ((weight, hessian, cross, residual[:2]), {}, r"residual: expected shape \[5, 12\]"),
        ((weight, hessian, cross), {"strength": 1.5}, "strength: expected 0 to 1, got 1.5"),
        ((weight, hessian, cross), {"shrinkage": 2}, "shrinkage: expected 0 to 1, got 2"),
        ((weight, hessian, cross), {"percdamp": -1}, "percdamp: expected a number not below 0"),
        ((weight, hessian, np.full((12, 12), np.inf)), {}, "cross: expected finite values"),
    ]:
        with pytest.raises(ValueError, match=message):
            propagated_target(*arrays, **options)
    singular = np.zeros((12, 12)) + 1.0
    with pytest.raises(np.linalg.LinAlgError, match="hessian: not positive definite"):
        propagated_target(weight, singular, cross, percdamp=0.0, damping_tries=1)
    grown = propagated_target(weight, singular, singular, percdamp=0.0)
    np.testing.assert_allclose(grown, weight)
