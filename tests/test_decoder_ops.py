"""What a decoder computes beside products, on every backend, against float64 definitions."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from models import naive_llama

from numbacalib.ops import divergence
from numbacalib.ops.activation import ACTIVATIONS, activate, activate_clamped
from numbacalib.ops.attention import attention
from numbacalib.ops.layer_norm import layer_norm
from numbacalib.ops.linear import linear
from numbacalib.ops.matrix import (
    add_scaled,
    column_range,
    from_host,
    joined_columns,
    put_columns,
    row_range,
)
from numbacalib.ops.rms_norm import rms_norm
from numbacalib.ops.rotary import rotate
from numbacalib.ops.token_loss import add_scores, cap, losses
from numbacalib.spec.decoder import LOWEST
from numbacalib.spec.exponential import exp
from numbacalib.spec.normal import normal_cdf

RTOL = {np.float32: 2e-5, np.float16: 2e-3, ml_dtypes.bfloat16: 1.6e-2}
"""Of the largest number of a result: a few roundings of its dtype."""


def normal(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32).astype(dtype)


def assert_near(actual, expected, dtype=np.float32):
    actual = np.asarray(actual, np.float64)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=RTOL[dtype] * abs(expected).max())


@pytest.fixture(params=[np.float32, np.float16, ml_dtypes.bfloat16], ids=["f32", "f16", "bf16"])
def dtype(request):
    return request.param


def test_exponentials_are_within_two_ulp():
    x = np.concatenate([np.linspace(-87.3, 88, 200001), np.linspace(-1e-3, 1e-3, 1001)])
    x = x.astype(np.float32)
    actual = np.array([exp(value) for value in x], np.float64)
    exact = np.exp(x.astype(np.float64))
    assert (abs(actual - exact) / np.spacing(exact.astype(np.float32))).max() < 2


def test_exponentials_at_the_ends():
    given = np.array([-np.inf, -1e30, -88, 0, 1e30, np.inf, np.nan], np.float32)
    expected = [0, 0, 0, 1, np.inf, np.inf, np.nan]
    np.testing.assert_array_equal([exp(value) for value in given], expected)


def test_the_normal_distribution_is_within_1e_7_and_precise_to_the_left():
    x = np.concatenate([np.linspace(-13, 13, 200001), np.linspace(-1e-3, 1e-3, 1001)])
    x = x.astype(np.float32)
    actual = np.array([normal_cdf(value) for value in x], np.float64)
    exact = np.array([math.erfc(-value / math.sqrt(2)) / 2 for value in x.astype(np.float64)])
    assert abs(actual - exact).max() < 1e-7
    left = (x < 0) & (x > -9)
    assert (abs(actual - exact) / exact)[left].max() < 1e-5


def test_the_normal_distribution_at_the_ends():
    given = np.array([-np.inf, -3e38, -14, 0, 14, 3e38, np.inf, np.nan], np.float32)
    expected = [0, 0, 0, 0.5, 1, 1, 1, np.nan]
    np.testing.assert_array_equal([normal_cdf(value) for value in given], expected)


@pytest.mark.parametrize("columns", [1, 15, 16, 65])
def test_rms_norm(backend, dtype, columns):
    x, weight = normal(0, 3, 2, columns, dtype=dtype), normal(1, columns)
    actual = backend.call(rms_norm, x, weight, 1e-5, dtype=dtype)
    assert actual.dtype == dtype
    wide = x.astype(np.float64).reshape(-1, columns)
    expected = naive_llama.rms_norm(wide, weight.astype(np.float64), 1e-5)
    assert_near(actual, expected.reshape(x.shape), dtype)


def test_rotary_embedding(backend, dtype):
    heads = normal(0, 2, 5, 3, 8, dtype=dtype)
    angles = np.arange(5)[:, None] * 10000.0 ** (-np.arange(4) / 4)
    moved = backend.array(heads.copy())
    backend.call(rotate, moved, np.cos(angles).astype("f4"), np.sin(angles).astype("f4"))
    expected = np.array(
        [
            [[naive_llama.rotate(h.astype(np.float64), t, 10000.0) for h in token]
             for t, token in enumerate(sequence)]
            for sequence in heads
        ]
    )  # fmt: skip
    assert_near(backend.numpy(moved), expected, dtype)


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("interleaved", [False, True])
def test_a_part_of_each_head_turns(backend, dtype, interleaved, first):
    heads = normal(0, 2, 5, 3, 8, dtype=dtype)
    angles = np.arange(5)[:, None] * 100.0 ** (-np.arange(3) / 3)
    moved = backend.array(heads.copy())
    cos, sin = np.cos(angles).astype("f4"), np.sin(angles).astype("f4")
    backend.call(rotate, moved, cos, sin, interleaved=interleaved, first=first)
    wide = heads.astype(np.float64)
    expected = np.array(
        [
            [[naive_llama.rotate(h, t, 100.0, 6, interleaved, first) for h in token]
             for t, token in enumerate(sequence)]
            for sequence in wide
        ]
    )  # fmt: skip
    assert_near(backend.numpy(moved), expected, dtype)


@pytest.mark.parametrize("columns", [1, 15, 16, 65])
@pytest.mark.parametrize("weights", [1, 2])
@pytest.mark.parametrize("biased", [False, True])
def test_layer_norm(backend, dtype, columns, weights, biased):
    """With one weight for all vectors, or for each of two that follow each other."""
    x, weight = normal(0, 3, 2, columns, dtype=dtype) + dtype(3), normal(1, weights, columns)
    bias = normal(2, weights, columns) if biased else None
    actual = backend.call(layer_norm, x, weight, bias, 1e-5, dtype=dtype)
    assert actual.dtype == dtype
    wide = x.astype(np.float64)
    expected = np.empty(x.shape)
    for i in range(2):
        own = i % weights
        other = bias[own].astype(np.float64) if biased else 0.0
        w = weight[own].astype(np.float64)
        expected[:, i] = naive_llama.layer_norm(wide[:, i], w, other, 1e-5)
    assert_near(actual, expected, dtype)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(backend, dtype, name, gated):
    x, up = normal(0, 3, 37, dtype=dtype) * dtype(4), normal(1, 3, 37, dtype=dtype)
    x[0, :4] = [-100, 100, -88.5, 0]
    expected = naive_llama.activation(name, x.astype(np.float64))
    if gated:
        expected = expected * up.astype(np.float64)
    moved = backend.array(x.copy())
    backend.call(activate, moved, name, *((up,) if gated else ()))
    assert_near(backend.numpy(moved), expected, dtype)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_pass_on_nan(backend, name):
    moved = backend.array(np.array([[np.nan, 1]], np.float32))
    backend.call(activate, moved, name)
    np.testing.assert_array_equal(np.isnan(backend.numpy(moved)), [[True, False]])


@pytest.mark.parametrize(("slope", "limit"), [(1.702, 7.0), (0.5, 1.0)])
def test_clamped_gates(backend, dtype, slope, limit):
    gate, up = normal(0, 3, 37, dtype=dtype) * dtype(6), normal(1, 3, 37, dtype=dtype) * dtype(6)
    gate[0, :4], up[1, :3] = [-100, 100, 7, 0], [-100, 100, 0]
    moved = backend.array(gate.copy())
    backend.call(activate_clamped, moved, up, slope, limit)
    wide = gate.astype(np.float64), up.astype(np.float64)
    assert_near(backend.numpy(moved), naive_llama.clamped_swiglu(*wide, slope, limit), dtype)


def test_clamped_gates_pass_on_nan(backend):
    gate, up = np.array([[np.nan, 1, 1]], np.float32), np.array([[1, np.nan, 1]], np.float32)
    moved = backend.array(gate.copy())
    backend.call(activate_clamped, moved, up, 1.702, 7.0)
    np.testing.assert_array_equal(np.isnan(backend.numpy(moved)), [[True, True, False]])


def test_capped_scores(backend):
    scores = normal(0, 3, 37) * 40
    scores[0, :4] = [-1e9, 1e9, 0, 1e-3]
    moved = backend.array(scores.copy())
    backend.call(cap, moved, 30.0)
    assert_near(backend.numpy(moved), 30 * np.tanh(scores.astype(np.float64) / 30))


def test_scaled_sums_and_ranges_of_rows(backend):
    target, values = normal(0, 2, 3, 5), normal(1, 2, 3, 5)
    moved = backend.array(target.copy())
    backend.call(add_scaled, moved, values, 0.25)
    assert_near(backend.numpy(moved), target.astype(np.float64) + 0.25 * values)
    matrix = normal(2, 6, 4)
    assert_near(backend.call(row_range, matrix, 2, 5), matrix[2:5].astype(np.float64))


def test_parts_of_heads(backend, dtype):
    heads, shared = normal(0, 2, 3, 4, 7, dtype=dtype), normal(1, 2, 3, 2, 5, dtype=dtype)
    part = backend.call(column_range, heads, 2, 6)
    assert part.dtype == dtype
    np.testing.assert_array_equal(part, heads[..., 2:6])
    moved = backend.array(heads.copy())
    backend.call(put_columns, moved, 1, shared.repeat(2, axis=2))
    expected = heads.copy()
    expected[..., 1:6] = shared.repeat(2, axis=2)
    np.testing.assert_array_equal(backend.numpy(moved), expected)
    joined = backend.call(joined_columns, heads, shared)
    np.testing.assert_array_equal(joined, np.concatenate([heads, shared.repeat(2, axis=2)], 3))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("add", [False, True])
def test_linear(backend, bias, add):
    x, weight = normal(0, 2, 3, 16), normal(1, 5, 16)
    b, target = normal(2, 5) if bias else None, normal(3, 2, 3, 5)
    expected = x.astype(np.float64) @ weight.astype(np.float64).T
    expected = expected + (b if bias else 0) + (target if add else 0)
    actual = backend.call(linear, x, weight, b, **({"add_to": target.copy()} if add else {}))
    assert_near(actual, expected)


LENGTHS = {"numpy": (1, 63, 64, 65, 300), "cudasim": (1, 3, 4, 9), "cuda": (1, 31, 64, 200)}


@pytest.mark.parametrize("case", range(5))
@pytest.mark.parametrize("window", [None, 1, 3, 130])
@pytest.mark.parametrize(("heads", "size"), [((6, 2), 8), ((3, 3), 12), ((2, 1), 64)])
def test_attention(backend, case, window, heads, size):
    lengths = LENGTHS[backend.name]
    length = lengths[case % len(lengths)]
    queries = normal(length, 2, length, heads[0], size)
    keys, values = normal(window or 0, 2, 2, length, heads[1], size)
    actual = backend.call(attention, queries, keys, values, window)
    wide = [array.astype(np.float64) for array in (queries, keys, values)]
    expected = [naive_llama.attention(*(w[s] for w in wide), window) for s in range(2)]
    assert_near(actual, np.array(expected))


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("size", "width"), [(12, 8), (5, 9), (24, 2)])
def test_values_of_another_length(backend, dtype, window, size, width):
    length = LENGTHS[backend.name][-1]
    queries, keys = (
        normal(0, 2, length, 6, size, dtype=dtype),
        normal(1, 2, length, 2, size, dtype=dtype),
    )
    values = normal(2, 2, length, 2, width, dtype=dtype)
    if backend.name == "numpy":
        queries, keys, values = (array.astype(np.float32) for array in (queries, keys, values))
    actual = backend.call(attention, queries, keys, values, window)
    assert actual.dtype == values.dtype
    wide = [array.astype(np.float64) for array in (queries, keys, values)]
    expected = [naive_llama.attention(*(w[s] for w in wide), window) for s in range(2)]
    assert_near(actual, np.array(expected), dtype)


@pytest.mark.parametrize(
    "options",
    [{"scale": 0.7}, {"cap": 1.5}, {"sinks": True}, {"scale": 0.7, "cap": 2.0, "sinks": True}],
    ids=lambda options: "-".join(options),
)
@pytest.mark.parametrize("window", [None, 3])
def test_options_of_attention(backend, options, window):
    length = LENGTHS[backend.name][-1]
    queries, keys, values = (normal(i, 2, length, 6 if i == 0 else 2, 8) for i in range(3))
    options = dict(options)
    if "sinks" in options:
        options["sinks"] = normal(3, 6) * 2
    actual = backend.call(attention, queries, keys, values, window, **options)
    wide = [array.astype(np.float64) for array in (queries, keys, values)]
    expected = [naive_llama.attention(*(w[s] for w in wide), window, **options) for s in range(2)]
    assert_near(actual, np.array(expected))


def test_attention_stands_large_scores(backend):
    queries = np.full((1, 3, 1, 4), 1e4, dtype=np.float32)
    keys = np.array([1e4, -1e4, 1e4], dtype=np.float32)[None, :, None, None] * np.ones(4, "f4")
    values = np.arange(12, dtype=np.float32).reshape(1, 3, 1, 4)
    expected = np.stack([values[0, 0], values[0, 0], (values[0, 0] + values[0, 2]) / 2])
    actual = backend.call(attention, queries, keys, values)
    np.testing.assert_array_equal(actual[0], expected)


def test_attention_passes_on_what_is_not_finite(backend):
    queries, keys, values = (normal(i, 1, 4, 1, 8) for i in range(3))
    keys[0, 2] = np.nan
    actual = backend.call(attention, queries, keys, values)
    assert np.isfinite(actual[0, :2]).all()
    assert np.isnan(actual[0, 2:]).all()


@pytest.mark.parametrize("parts", [(7,), (1, 6), (3, 2, 2)])
def test_token_losses(backend, parts):
    scores, targets = normal(0, 9, 7) * 10, np.arange(9) % 7
    state = np.zeros((3, 9), np.float32)
    state[0] = LOWEST
    state, first = backend.array(state), 0
    for width in parts:
        part = np.ascontiguousarray(scores[:, first : first + width])
        backend.call(add_scores, part, first, targets, state)
        first += width
    wide = scores.astype(np.float64)
    expected = np.array(
        [-np.log(naive_llama.softmax(row)[t]) for row, t in zip(wide, targets, strict=True)]
    )
    assert_near(backend.call(losses, state), expected)


def test_a_copy_of_the_place(backend):
    like = backend.array(normal(0, 2, 2))
    assert_near(backend.numpy(from_host(normal(1, 3), like)), normal(1, 3).astype(np.float64))


@pytest.mark.parametrize("parts", [(37,), (1, 36), (16, 20, 1)])
def test_divergences(backend, parts):
    p = normal(0, 9, 37) * 10
    q = p + normal(1, 9, 37) * np.logspace(-3, 1, 9, dtype=np.float32)[:, None]
    state, first = divergence.new_state(9, backend.array(p)), 0
    for width in parts:
        own, other = (np.ascontiguousarray(each[:, first : first + width]) for each in (p, q))
        backend.call(divergence.add_scores, own, other, state)
        first += width
    expected = []
    for rows in zip(p.astype(np.float64), q.astype(np.float64), strict=True):
        own, other = map(naive_llama.softmax, rows)
        expected.append((own * np.log(own / other)).sum())
    found = backend.numpy(backend.call(divergence.divergences, state))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
