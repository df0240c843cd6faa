"""The gated delta rule and its convolution on every backend, against float64 definitions."""

from __future__ import annotations

import ml_dtypes
import naive_delta
import numpy as np
import pytest
from numba import set_num_threads

from numbacalib.ops.causal_convolution import causal_convolution
from numbacalib.ops.delta_rule import delta_rule
from numbacalib.spec.activations import softplus
from numbacalib.spec.delta_rule import decay_of

RTOL = {np.float32: 2e-5, np.float16: 2e-3, ml_dtypes.bfloat16: 1.6e-2}
"""Of the largest number of a result: a few roundings of its dtype."""
SHAPES = [(1, 1, 1, 3), (5, 2, 4, 7), (9, 3, 3, 4)]
"""Tokens, heads of keys and of values, and the length of values."""


@pytest.fixture(params=[np.float32, np.float16, ml_dtypes.bfloat16], ids=["f32", "f16", "bf16"])
def dtype(request):
    return request.param


def assert_near(actual, expected, dtype=np.float32):
    actual = np.asarray(actual, np.float64)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=RTOL[dtype] * abs(expected).max())


def of_length_one(rng, *shape):
    x = rng.standard_normal(shape)
    return (x / np.sqrt((x * x).sum(-1, keepdims=True))).astype(np.float32)


def inputs(length, key_heads, heads, width, size=6, dtype=np.float32):
    rng = np.random.default_rng(length)
    keys = of_length_one(rng, 2, length, key_heads, size)
    values = rng.standard_normal((2, length, heads, width)).astype(dtype)
    decays, rates = (rng.standard_normal((2, length, heads)).astype("f4") for _ in range(2))
    slopes, biases = (rng.standard_normal(heads).astype("f4") for _ in range(2))
    return (of_length_one(rng, *keys.shape), keys, values, decays, rates), (slopes, biases)


def call(backend, tokens, heads):
    return backend.call(delta_rule, *tokens, slopes=heads[0], biases=heads[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_delta_rule(backend, dtype, shape):
    tokens, heads = inputs(*shape, dtype=dtype)
    actual = call(backend, tokens, heads)
    assert actual.dtype == dtype
    wide = [array.astype(np.float64) for array in tokens]
    expected = [naive_delta.delta_rule(*given, *heads) for given in zip(*wide, strict=True)]
    assert_near(actual, np.array(expected), dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_mamba_2(backend, dtype, shape):
    (queries, keys, values, decays, _), heads = inputs(*shape, dtype=dtype)
    actual = call(backend, (queries, keys, values, decays, None), heads)
    assert actual.dtype == dtype
    wide = [array.astype(np.float64) for array in (queries, keys, values, decays)]
    expected = [naive_delta.delta_rule(*given, None, *heads) for given in zip(*wide, strict=True)]
    assert_near(actual, np.array(expected), dtype)


def test_heads_longer_than_a_run_of_columns(backend):
    size, width = (64, 70) if backend.name != "cudasim" else (8, 9)
    tokens, heads = inputs(70 if backend.name != "cudasim" else 5, 1, 2, width, size)
    wide = [array.astype(np.float64) for array in tokens]
    expected = [naive_delta.delta_rule(*given, *heads) for given in zip(*wide, strict=True)]
    assert_near(call(backend, tokens, heads), np.array(expected))


def test_a_token_sees_none_after_it(backend):
    tokens, heads = inputs(5, 2, 4, 7)
    whole = call(backend, tokens, heads)
    begun = call(backend, tuple(np.ascontiguousarray(array[:, :3]) for array in tokens), heads)
    np.testing.assert_array_equal(whole[:, :3], begun)


def test_the_same_bits_with_any_number_of_threads():
    tokens, heads = inputs(9, 3, 3, 70)
    given = {"slopes": heads[0], "biases": heads[1]}
    expected = delta_rule(*tokens, **given)
    set_num_threads(1)
    try:
        np.testing.assert_array_equal(delta_rule(*tokens, **given), expected)
    finally:
        from numba import config

        set_num_threads(config.NUMBA_NUM_THREADS)


def test_nan_shows_from_its_token_on(backend):
    tokens, heads = inputs(5, 1, 1, 3)
    tokens[2][0, 2, 0, 1] = np.nan
    found = np.isnan(call(backend, tokens, heads))
    expected = np.zeros((2, 5, 1, 3), bool)
    expected[0, 2:, 0, 1] = True
    np.testing.assert_array_equal(found, expected)


def test_softplus_and_decays_at_the_ends():
    x = np.array([-1e30, -100, -20, -5, 0, 5, 100, 1e30], np.float32)
    actual = np.array([softplus(value) for value in x], np.float64)
    np.testing.assert_allclose(actual, np.logaddexp(0, x.astype(np.float64)), rtol=3e-7, atol=1e-37)
    left = [decay_of(np.float32(score), np.float32(2), np.float32(0.5)) for score in (-1e4, 1e4)]
    np.testing.assert_array_equal(left, [1, 0])


@pytest.mark.parametrize("length", [1, 3, 9])
@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("biased", [False, True])
def test_causal_convolution(backend, dtype, length, width, biased):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, length, 5)).astype(dtype)
    taps = rng.standard_normal((5, width)).astype(np.float32)
    bias = rng.standard_normal(5).astype(np.float32) if biased else None
    actual = backend.call(causal_convolution, x, taps, bias)
    assert actual.dtype == dtype
    wide = x.astype(np.float64)
    expected = np.array([naive_delta.causal_convolution(sequence, taps) for sequence in wide])
    assert_near(actual, expected + (bias if biased else 0), dtype)
