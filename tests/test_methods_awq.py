"""AWQ's searches against their definitions, and what they must never do."""

import cases
import naive
import naive_methods
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbacalib import awq_channel_scores
from numbacalib.methods import awq_clip, awq_scales, gptq, proxy_loss, rtn

FLOAT32 = {"scale_dtype": np.float32}


def inputs_with_outliers(seed, tokens=64, channels=16):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(tokens, channels)) * 10 ** rng.uniform(-1, 1, channels)


def layers(seed, rows=(6, 3), channels=16):
    inputs = inputs_with_outliers(seed, channels=channels)
    weights = [cases.random_matrix(seed + i, (m, channels)) for i, m in enumerate(rows)]
    return weights, inputs, 2 / len(inputs) * inputs.T @ inputs


@pytest.mark.parametrize("weight_term", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "group_size"), [(3, 8), (4, 16), (2, 4)])
def test_the_search_agrees_with_the_definition(weight_term, symmetric, bits, group_size):
    weights, inputs, hessian = layers(3)
    magnitude = np.abs(inputs).mean(axis=0)
    settings = {"bits": bits, "group_size": group_size, "symmetric": symmetric}
    found = awq_scales(
        weights, hessian, magnitude, **settings, **FLOAT32, weight_term=weight_term, points=8
    )
    losses = {
        r: naive_methods.awq_loss(weights, hessian, scales, **settings, store=np.float32)
        for r, scales in naive_methods.awq_candidates(
            weights, magnitude, group_size, weight_term, 8
        )
    }
    assert found.identity_loss == pytest.approx(losses[None], rel=1e-5)
    assert found.loss == pytest.approx(min(losses.values()), rel=1e-4)
    assert losses[found.exponent] == pytest.approx(found.loss, rel=1e-4)
    candidates = dict(naive_methods.awq_candidates(weights, magnitude, group_size, weight_term, 8))
    np.testing.assert_allclose(found.scales, candidates[found.exponent], rtol=1e-6)


@given(
    seed=st.integers(0, 999),
    bits=st.integers(2, 8),
    group_size=st.sampled_from([4, 8, 16]),
    weight_term=st.booleans(),
)
def test_never_worse_than_rounding_on_its_own_measure(seed, bits, group_size, weight_term):
    weights, inputs, hessian = layers(seed)
    settings = {"bits": bits, "group_size": group_size}
    found = awq_scales(
        weights, hessian, np.abs(inputs).mean(axis=0), **settings, weight_term=weight_term
    )
    rounding = sum(proxy_loss(weight, rtn(weight, **settings), hessian) for weight in weights)
    assert found.identity_loss == pytest.approx(rounding, rel=1e-6)
    assert found.loss <= found.identity_loss
    scaled = [weight * found.scales for weight in weights]
    loss = sum(proxy_loss(w, rtn(w, **settings), hessian, found.scales) for w in scaled)
    assert loss == pytest.approx(found.loss, rel=1e-5)


def test_the_loss_is_that_of_the_outputs():
    weights, inputs, hessian = layers(5)
    found = awq_scales(weights, hessian, np.abs(inputs).mean(axis=0), bits=3, group_size=8)
    assert found.exponent is not None
    assert found.loss < 0.9 * found.identity_loss
    error = 0.0
    for weight in weights:
        values = rtn(weight * found.scales, bits=3, group_size=8).dequantize(np.float64)
        error += ((inputs @ weight.T - (inputs / found.scales) @ values.T) ** 2).sum()
    assert found.loss == pytest.approx(2 / len(inputs) * error, rel=1e-4)


def test_any_magnitude_serves():
    weights, inputs, hessian = layers(7)
    for magnitude in (np.abs(inputs).max(axis=0), awq_channel_scores(inputs, weights[0])):
        found = awq_scales(weights, hessian, magnitude, bits=3, group_size=8)
        assert found.loss < found.identity_loss
    flat = awq_scales(weights, hessian, np.ones(16), bits=3, group_size=8)
    np.testing.assert_array_equal(flat.scales, 1)
    assert flat.exponent is None


def test_dead_channels_keep_their_scale():
    weights, inputs, _ = layers(9)
    inputs[:, [2, 9]] = 0
    weights[0][:, 5] = weights[1][:, 5] = 0
    hessian = 2 / len(inputs) * inputs.T @ inputs
    for weight_term in (False, True):
        found = awq_scales(
            weights,
            hessian,
            np.abs(inputs).mean(axis=0),
            bits=3,
            group_size=8,
            weight_term=weight_term,
        )
        assert found.exponent is not None
        np.testing.assert_array_equal(found.scales[[2, 9]], 1)
        assert np.isfinite(found.scales).all()


def test_gptq_on_scaled_weights_gains_from_both():
    weights, inputs, hessian = layers(11, rows=(24,), channels=32)
    weight = weights[0]
    settings = {"bits": 3, "group_size": 16}
    found = awq_scales([weight], hessian, np.abs(inputs).mean(axis=0), **settings)
    scaled = weight * found.scales
    both = gptq(scaled, hessian / np.outer(found.scales, found.scales), **settings)
    alone = gptq(weight, hessian, **settings)
    loss = proxy_loss(scaled, both, hessian, found.scales)
    assert loss < 0.9 * found.loss
    assert loss < proxy_loss(weight, alone, hessian)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("bits", "group_size", "shape"),
    [(3, 8, (5, 16)), (2, 16, (5, 16)), (4, 4, (5, 16)), (3, 40, (130, 80))],
)
def test_clipping_agrees_with_the_definition(symmetric, bits, group_size, shape):
    """With more rows than a CPU's worker takes at once, and groups that do not fill its vectors, too."""
    (weight,), _, hessian = layers(13, rows=shape[:1], channels=shape[1])
    settings = {"bits": bits, "group_size": group_size, "symmetric": symmetric}
    quantized = awq_clip(weight, hessian, **settings, **FLOAT32, points=10, least=0.25)
    expected = naive_methods.awq_clip(
        weight, hessian, **settings, points=10, least=0.25, store=np.float32
    )
    np.testing.assert_allclose(quantized.dequantize(), expected, rtol=1e-5, atol=1e-7)


@given(seed=st.integers(0, 999), bits=st.integers(2, 8), symmetric=st.booleans())
def test_clipping_never_loses_in_a_groups_own_output(seed, bits, symmetric):
    (weight,), _, hessian = layers(seed, rows=(4,))
    settings = {"bits": bits, "group_size": 8, "symmetric": symmetric}
    blocks = hessian.copy()
    blocks[:8, 8:] = blocks[8:, :8] = 0
    clipped = proxy_loss(weight, awq_clip(weight, hessian, **settings), blocks)
    assert clipped <= proxy_loss(weight, rtn(weight, **settings), blocks) * (1 + 1e-5)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_every_dtype_is_taken(dtype):
    (weight,), inputs, hessian = layers(15, rows=(5,))
    weight = weight.astype(dtype)
    exact = weight.astype(np.float64)
    kept = weight.copy()
    magnitude = np.abs(inputs).mean(axis=0)
    for function, arguments in ((awq_scales, (hessian, magnitude)), (awq_clip, (hessian,))):
        narrow, wide = (
            function([w] if function is awq_scales else w, *arguments, bits=3, group_size=8)
            for w in (weight, exact)
        )
        if function is awq_scales:
            assert narrow.loss == pytest.approx(wide.loss, rel=0.02)
        else:
            losses = [naive.proxy_loss(exact, q.dequantize(), hessian) for q in (narrow, wide)]
            assert losses[0] == pytest.approx(losses[1], rel=0.02)
    np.testing.assert_array_equal(weight, kept)


def test_errors_name_the_argument():
    weights, _, hessian = layers(1)
    with pytest.raises(ValueError, match="weights: expected at least one"):
        awq_scales([], hessian, np.ones(16), bits=4)
    with pytest.raises(ValueError, match=r"magnitude: expected shape \[16\], got \[15\]"):
        awq_scales(weights, hessian, np.ones(15), bits=4, group_size=8)
    with pytest.raises(ValueError, match="magnitude: expected finite values not below 0"):
        awq_scales(weights, hessian, -np.ones(16), bits=4, group_size=8)
    with pytest.raises(ValueError, match=r"hessian: expected shape \[16, 16\], got \[2, 2\]"):
        awq_scales(weights, np.eye(2), np.ones(16), bits=4, group_size=8)
    with pytest.raises(ValueError, match=r"weights\[1\]: expected shape \[M, 16\], got \[3, 8\]"):
        awq_scales([weights[0], np.ones((3, 8))], hessian, np.ones(16), bits=4, group_size=8)
    with pytest.raises(ValueError, match=r"least: expected 0 to below 1, got 1\.5"):
        awq_clip(weights[0], hessian, bits=4, group_size=8, least=1.5)
