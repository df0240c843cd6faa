"""The range search against its definition, and what round-to-nearest gains by it."""

import cases
import ml_dtypes
import naive
import naive_methods
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbacalib.methods import RangeSearch, rtn
from numbacalib.spec.range_search import power


@given(
    rows=st.integers(1, 20),
    groups=st.integers(1, 3),
    group_size=st.integers(1, 70),
    bits=st.integers(2, 8),
    kind=st.sampled_from(["asymmetric", "symmetric", "full range"]),
    norm=st.sampled_from([1.0, 2, 2.4, 4]),
    weighted=st.sampled_from(["no", "channels", "weights"]),
    dtype=st.sampled_from(cases.DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_search_finds_the_least_error_of_its_candidates(
    backend, rows, groups, group_size, bits, kind, norm, weighted, dtype, seed
):
    rng = np.random.default_rng(seed)
    symmetric, full_range = kind != "asymmetric", kind == "full range"
    rows = min(rows, 3) if backend.name == "cudasim" else rows
    weight = rng.standard_t(3, size=(rows, groups * group_size)).astype(dtype)
    importance = None
    if weighted != "no":
        shape = weight.shape if weighted == "weights" else weight.shape[1:]
        importance = rng.exponential(size=shape).astype(np.float32)
    search = RangeSearch(points=20, least=0.3, norm=norm, full_range=full_range)
    quantized = backend.call(
        rtn,
        weight,
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        scale_dtype=np.float32,
        search=search,
        importance=importance,
    )
    every = np.broadcast_to(1.0 if importance is None else importance, weight.shape)
    offset = 2 ** (bits - 1) if symmetric else 0
    row, g = rng.integers(rows), rng.integers(groups)
    members = slice(g * group_size, (g + 1) * group_size)
    group, factors = weight[row, members].astype(float).tolist(), every[row, members].tolist()
    scale, zero = naive_methods.group_range(group, bits, symmetric, float, search, factors)
    errors = [
        naive_methods.group_error(group, float(s), float(z), bits, symmetric, norm, factors)
        for s, z in (
            (scale, zero),
            (quantized.scales[row, g], int(quantized.zeros[row, g]) - offset),
        )
    ]
    # every error may be off by float32's rounding of the weights: Minkowski's inequality for the sums
    least, found = (error ** (1 / norm) for error in errors)
    rounding = 1e-6 * max(map(abs, group)) * sum(factors) ** (1 / norm)
    assert found <= least * (1 + 1e-4) + rounding


@pytest.mark.parametrize("scale_dtype", [np.float16, ml_dtypes.bfloat16])
def test_candidates_are_judged_with_the_scale_that_is_stored(backend, scale_dtype):
    weight = cases.random_matrix(1, (4 if backend.name == "cudasim" else 40, 32))
    settings = {"bits": 3, "group_size": 32, "search": RangeSearch(norm=2)}
    quantized = backend.call(rtn, weight, **settings, scale_dtype=scale_dtype)

    def store(scale):
        return float(np.asarray(scale).astype(scale_dtype))

    for row, group in enumerate(weight.tolist()):
        scale, zero = naive_methods.group_range(group, 3, False, store, (100, 0.2, 2))
        assert (float(quantized.scales[row, 0]), quantized.zeros[row, 0]) == (scale, zero)


def test_one_candidate_is_the_full_range(backend):
    weight = cases.random_matrix(1, (5, 24), np.float32)
    plain = rtn(weight, bits=3, group_size=8)
    searched = backend.call(rtn, weight, bits=3, group_size=8, search=RangeSearch(points=1))
    np.testing.assert_array_equal(searched.scales, plain.scales)
    np.testing.assert_array_equal(searched.codes, plain.codes)


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("scale_dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_the_largest_weight_falls_on_the_longer_side_of_a_full_range(backend, bits, scale_dtype):
    weight = cases.random_matrix(1, (5, 24), np.float32)
    weight[2, 8:16] = 0
    search = RangeSearch(points=1, full_range=True)
    options = {"bits": bits, "group_size": 8, "symmetric": True, "scale_dtype": scale_dtype}
    quantized = backend.call(rtn, weight, **options, search=search)
    assert (quantized.scales.astype(np.float32) < 0).any()

    def store(scale):
        return float(np.asarray(scale, np.float32).astype(scale_dtype))

    for row, g in np.ndindex(5, 3):
        group = weight[row, 8 * g : 8 * g + 8].tolist()
        scale, _ = naive.group_grid(group, bits, True, store, full_range=True)
        codes = [naive.code(w, scale, 0, bits, True) + 2 ** (bits - 1) for w in group]
        assert quantized.scales[row, g] == scale
        assert quantized.codes[row, 8 * g : 8 * g + 8].tolist() == codes
        assert codes[int(np.argmax(np.abs(group)))] == (2 ** (bits - 1) if not any(group) else 0)
    assert not (quantized.zeros != 2 ** (bits - 1)).any()


def test_a_full_range_is_of_the_symmetric_grid():
    weight = cases.random_matrix(1, (5, 24), np.float32)
    with pytest.raises(ValueError, match="search.full_range: expected False without symmetric"):
        rtn(weight, bits=3, group_size=8, search=RangeSearch(full_range=True))


def test_zeros_and_unimportant_groups_keep_the_full_range(backend):
    weight = cases.random_matrix(1, (3, 16), np.float32)
    weight[:, 8:] = 0
    options = {"search": RangeSearch(), "importance": np.zeros(16)}
    searched = backend.call(rtn, weight, bits=3, group_size=8, **options)
    np.testing.assert_array_equal(searched.scales, rtn(weight, bits=3, group_size=8).scales)
    np.testing.assert_array_equal(searched.dequantize()[:, 8:], 0)


def test_errors_beyond_their_type_keep_the_full_range(backend):
    weight = np.array([[1e30, -3e29, 2e29, 7e29]] * 2, np.float32)
    options = {"bits": 2, "group_size": 4, "scale_dtype": np.float32}
    searched = backend.call(rtn, weight, **options, search=RangeSearch(norm=2))
    np.testing.assert_array_equal(searched.scales, rtn(weight, **options).scales)


def test_important_channels_are_kept_better():
    weight = cases.random_matrix(1, (64, 32), np.float32)
    importance = np.ones(32, np.float32)
    importance[:4] = 100
    errors = [
        ((rtn(weight, bits=2, group_size=32, search=search, **options).dequantize() - weight) ** 2)[
            :, :4
        ].sum()
        for search in [RangeSearch(norm=2)]
        for options in ({}, {"importance": importance})
    ]
    assert errors[1] < 0.8 * errors[0]


def test_weights_are_not_written_to():
    weight = cases.random_matrix(1, (5, 24), np.float32)
    kept = weight.copy()
    rtn(weight, bits=3, group_size=8, search=RangeSearch())
    np.testing.assert_array_equal(weight, kept)


@given(st.floats(1e-30, 1e6), st.floats(0.5, 4))
def test_power_is_close_enough_to_rank_by(x, exponent):
    x, exponent = np.float32(x), np.float32(exponent)
    expected = float(x) ** float(exponent)
    if 1e-35 < expected < 1e35:
        assert power(x, exponent) == pytest.approx(expected, rel=3e-5)


def test_power_of_zero_is_next_to_nothing():
    assert power(np.float32(0), np.float32(2.4)) < 1e-37


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search": RangeSearch(points=0)}, "search.points: expected 1 to"),
        ({"search": RangeSearch(least=1.0)}, r"search.least: expected 0 to below 1, got 1.0"),
        ({"search": RangeSearch(norm=0)}, "search.norm: expected a number above 0, got 0"),
        ({"importance": np.ones(8)}, "importance: expected None without a range search"),
        (
            {"search": RangeSearch(), "importance": np.ones(7)},
            r"importance: expected shape \[8\] or \[2, 8\], got \[7\]",
        ),
        (
            {"search": RangeSearch(), "importance": -np.ones(8)},
            "importance: expected finite values",
        ),
    ],
)
def test_errors_name_the_argument(backend, options, message):
    with pytest.raises(ValueError, match=message):
        backend.call(rtn, np.ones((2, 8), np.float32), bits=4, group_size=4, **options)
