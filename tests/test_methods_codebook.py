"""Codebooks per row against every clustering there is."""

import itertools

import cases
import naive_methods
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbacalib.methods import codebook, rtn
from numbacalib.ops.kmeans import kmeans_rows


def row_errors(matrix, importance, codes, centroids):
    values = np.take_along_axis(centroids.astype(float), codes, axis=1)
    return (importance * (matrix.astype(float) - values) ** 2).sum(axis=1)


@given(
    columns=st.integers(1, 11),
    clusters=st.integers(1, 5),
    dtype=st.sampled_from(cases.DTYPES),
    distinct=st.sampled_from([2, 4, 1000]),
    weightless=st.sampled_from([0, 0.3, 1]),
    shared=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_other_clustering_loses_less(
    columns, clusters, dtype, distinct, weightless, shared, seed
):
    rng = np.random.default_rng(seed)
    matrix = (rng.integers(-distinct, distinct, (3, columns)) * 0.37 + 5).astype(dtype)
    importance = rng.exponential(size=(1 if shared else 3, columns)) ** 3
    importance[rng.random(importance.shape) < weightless] = 0
    importance = importance.astype(cases.result_dtype(matrix))
    codes, centroids = kmeans_rows(matrix, clusters, importance)
    assert codes.dtype == np.uint8
    assert centroids.dtype == cases.result_dtype(matrix)
    every = np.broadcast_to(importance, matrix.shape).astype(float)
    errors = row_errors(matrix, every, codes, centroids)
    for i, row in enumerate(matrix.astype(float).tolist()):
        least = naive_methods.kmeans_error(row, every[i].tolist(), clusters)
        rounding = every[i].sum() * (np.finfo(centroids.dtype).eps * max(map(abs, row))) ** 2
        assert errors[i] <= least * (1 + 1e-5) + 4 * rounding


@given(
    clusters=st.integers(1, 40),
    layout=st.sampled_from(cases.LAYOUTS),
    dtype=st.sampled_from(cases.DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_long_rows_are_as_good_as_the_plain_recurrence(clusters, layout, dtype, seed):
    matrix = cases.random_matrix(seed, (2, 70), dtype, layout)
    importance = np.random.default_rng(seed).exponential(size=(2, 70)) ** 3
    importance = importance.astype(cases.result_dtype(matrix))
    codes, centroids = kmeans_rows(matrix, clusters, importance)
    errors = row_errors(matrix, importance, codes, centroids)
    for i, row in enumerate(matrix.astype(float).tolist()):
        least = naive_methods.kmeans_error_recurrence(row, importance[i].tolist(), clusters)
        assert errors[i] <= least * (1 + 1e-5) + 1e-10


@pytest.mark.parametrize("clusters", [3, 12])
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "clumps", "one-sided"])
def test_rows_of_several_blocks_are_as_good_as_the_plain_recurrence(kind, clusters):
    """Long enough for the search between runs of points, and for clusters longer than a block."""
    rng = np.random.default_rng(clusters)
    row = {
        "normal": lambda: rng.normal(size=400),
        "heavy tails": lambda: rng.standard_t(1.5, size=400),
        "clumps": lambda: rng.integers(-4, 4, 400) + 1e-3 * rng.normal(size=400),
        "one-sided": lambda: rng.exponential(size=400) ** 3,
    }[kind]()
    importance = rng.exponential(size=400) ** 3
    codes, centroids = kmeans_rows(row[None], clusters, importance[None])
    error = row_errors(row[None], importance[None], codes, centroids)[0]
    least = naive_methods.kmeans_error_recurrence(row.tolist(), importance.tolist(), clusters)
    assert error == pytest.approx(least, rel=1e-9)


@given(
    columns=st.integers(2, 60),
    clusters=st.integers(1, 59),
    pattern=st.lists(st.integers(0, 3), min_size=1, max_size=4),
)
def test_evenly_spaced_values_have_many_best_clusterings(columns, clusters, pattern):
    """Where one cluster more saves as much as the one before it, no penalty tells their number."""
    row = np.arange(columns, dtype=np.float64)
    importance = np.resize(pattern, columns).astype(np.float64) + (sum(pattern) == 0)
    codes, centroids = kmeans_rows(row[None], clusters, importance[None])
    error = row_errors(row[None], importance[None], codes, centroids)[0]
    least = naive_methods.kmeans_error_recurrence(row.tolist(), importance.tolist(), clusters)
    assert error == pytest.approx(least, rel=1e-9, abs=1e-9)


ROWS = {
    "an outlier": lambda rng, row, weights: (np.append(row[1:], 1e8), weights),
    "outliers on both sides": lambda rng, row, weights: (
        np.concatenate([row[2:], [-1e12, 1e8]]),
        weights,
    ),
    "all magnitudes": lambda rng, row, weights: (row * 10.0 ** rng.integers(-30, 30, 40), weights),
    "an importance above all": lambda rng, row, weights: (row, _raised(rng, weights, 1e15)),
    "one that drowns the others": lambda rng, row, weights: (row, _raised(rng, weights, 1e25)),
    "importances of all magnitudes": lambda rng, row, weights: (
        row,
        weights * 10.0 ** rng.integers(-15, 15, 40),
    ),
    "both": lambda rng, row, weights: (
        row * 10.0 ** rng.integers(-12, 12, 40),
        weights * 10.0 ** rng.integers(-12, 12, 40),
    ),
    "far from 0": lambda rng, row, weights: (row + 1e12, weights),
    "nearly equal": lambda rng, row, weights: (np.append(1 + 1e-9 * row[1:], 0), weights),
}


def _raised(rng, weights, factor):
    weights[rng.integers(len(weights))] *= factor
    return weights


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ROWS)
def test_the_least_error_of_rows_that_sums_cannot_tell_apart(kind, dtype):
    """Against fractions, which round nothing; centroids are not, either."""
    for seed, clusters in itertools.product(range(4), (2, 5, 16)):
        rng = np.random.default_rng(seed)
        row, weights = ROWS[kind](rng, rng.normal(size=40), rng.exponential(size=40) ** 3)
        row, weights = row.astype(dtype), weights.astype(dtype)
        codes, _ = kmeans_rows(row[None].astype(np.float64), clusters, weights[None].astype(float))
        least = naive_methods.kmeans_error_exact(row.tolist(), weights.tolist(), clusters)
        error = sum(
            naive_methods.kmeans_error_exact(row[own].tolist(), weights[own].tolist(), 1)
            for own in (codes[0] == code for code in range(clusters))
            if (weights[own] > 0).any()
        )
        assert error <= least * (1 + 1e-5), f"{kind}, seed {seed}: {float(error / least) - 1}"


def test_outliers_and_importances_of_float32_rows():
    """A row with one outlier loses no more than the row without it, with a cluster less."""
    rng = np.random.default_rng(1)
    row = rng.normal(size=500).astype(np.float32)
    codes, centroids = kmeans_rows(np.append(row, np.float32(1e8))[None], 9)
    error = row_errors(row[None], 1, codes[:, :-1], centroids)[0]
    _, alone = kmeans_rows(row[None], 8)
    codes, _ = kmeans_rows(row[None], 8)
    assert codes.max() == 7
    assert error == pytest.approx(row_errors(row[None], 1, codes, alone)[0], rel=1e-5)


def test_importances_beyond_float32_are_as_good_as_their_ratios():
    weight = cases.random_matrix(5, (2, 50), np.float32)
    importance = np.random.default_rng(5).exponential(size=(2, 50))
    expected = codebook(weight, bits=3, importance=importance)
    for factor in (1e300, 1e-300):
        found = codebook(weight, bits=3, importance=importance * [[1], [factor]])
        np.testing.assert_array_equal(found.codes, expected.codes)


def test_weights_beyond_float32_are_named():
    weight = np.ones((2, 8))
    weight[1, 3] = -1e39
    with pytest.raises(
        ValueError, match=r"weight: expected magnitudes below 3.4e\+38, got .* at \[1, 3\]"
    ):
        codebook(weight, bits=2)


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 999))
def test_the_two_references_agree(columns, clusters, seed):
    rng = np.random.default_rng(seed)
    row, weights = rng.normal(size=columns).tolist(), rng.exponential(size=columns).tolist()
    assert naive_methods.kmeans_error_recurrence(row, weights, clusters) == pytest.approx(
        naive_methods.kmeans_error(row, weights, clusters), abs=1e-12
    )


@given(
    near=st.integers(1, 200),
    far=st.sampled_from([0.0, 1.0, 1e7, 1e30, 1e300, 1.7e308]),
    clusters=st.integers(1, 12),
    seed=st.integers(0, 999),
)
def test_values_beside_far_ones_are_told_apart(near, far, clusters, seed):
    """However a row is arranged: the sort meets them in one bucket, some of them equal."""
    rng = np.random.default_rng(seed)
    row = np.append(rng.integers(-30, 30, near) / 8, [far, -far])
    ascending, descending, anyhow = np.sort(row), np.sort(row)[::-1], rng.permutation(row)
    codes, centroids = kmeans_rows(np.stack([ascending, descending, anyhow]), clusters)
    assert (np.diff(codes[0].astype(int)) >= 0).all()
    np.testing.assert_array_equal(codes[1], codes[0, ::-1])
    np.testing.assert_array_equal(codes[2, np.argsort(anyhow)], codes[0])
    np.testing.assert_array_equal(centroids[1:], centroids[[0, 0]])


def test_codes_name_the_nearest_centroid_the_lower_of_two():
    matrix = np.array([[0, 2, 1, 3, 10, 6, 5]], np.float32)
    importance = np.array([[1, 1, 0, 0, 1, 0, 0]], np.float32)
    codes, centroids = kmeans_rows(matrix, 3, importance)
    np.testing.assert_array_equal(centroids, [[0, 2, 10]])
    np.testing.assert_array_equal(codes, [[0, 1, 0, 1, 2, 1, 1]])


def test_fewer_values_than_clusters_are_kept_exactly():
    matrix = np.array([[3, -1, 3, 0, -1], [7, 7, 7, 7, 7]], np.float16)
    codes, centroids = kmeans_rows(matrix, 5)
    np.testing.assert_array_equal(centroids, [[-1, 0, 3, 3, 3], [7, 7, 7, 7, 7]])
    np.testing.assert_array_equal(codes, [[2, 0, 2, 1, 0], [0, 0, 0, 0, 0]])


def test_a_row_without_weight_counts_every_value():
    matrix = cases.random_matrix(1, (2, 20), np.float32)
    importance = np.ones((2, 20), np.float32)
    expected = kmeans_rows(matrix, 4)
    importance[1] = 0
    for ours, theirs in zip(kmeans_rows(matrix, 4, importance), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_long_row_that_repeats_values_is_clustered_as_they_are(dtype):
    """Longer than the 4096 values whose indices fit beside a sorting key of 32 bits."""
    rng = np.random.default_rng(2)
    row, importance = rng.normal(size=2500).astype(dtype), rng.exponential(size=2500).astype(dtype)
    expected, means = kmeans_rows(row[None], 8, importance[None])
    places = rng.permutation(5000)
    longer, weights = np.tile(row, 2)[places], np.tile(importance / 2, 2)[places]
    codes, centroids = kmeans_rows(longer[None], 8, weights[None])
    np.testing.assert_array_equal(codes[0], np.tile(expected[0], 2)[places])
    np.testing.assert_allclose(centroids, means, rtol=1e-6 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize(
    ("span", "digits"),
    [(1e-320, 1e-3), (1e-300, 1e-12), (1e308, 1e-12)],  # 1e-320 has three
)
def test_values_of_any_magnitude(span, digits):
    """Inverses of such spans, or the spans themselves, are not finite."""
    row = np.array([[-1.0, -0.75, 0.0, 0.25, 0.5, 1.0]]) * span
    codes, centroids = kmeans_rows(row, 3, None)
    np.testing.assert_array_equal(codes, [[0, 0, 1, 1, 1, 2]])
    np.testing.assert_allclose(centroids / span, [[-0.875, 0.25, 1]], rtol=digits)


def test_weights_of_any_magnitude():
    matrix = cases.random_matrix(1, (2, 60))
    importance = np.random.default_rng(1).exponential(size=(1, 60))
    expected, _ = kmeans_rows(matrix, 8, importance)
    for factor in (1e-300, 1e300):
        codes, centroids = kmeans_rows(matrix, 8, importance * factor)
        np.testing.assert_array_equal(codes, expected)
        assert np.isfinite(centroids).all()
    far, _ = kmeans_rows(matrix + 1e6, 8, importance)  # as far from 0 as 20 bits
    np.testing.assert_array_equal(far, expected)


@given(seed=st.integers(0, 999), bits=st.integers(2, 8))
def test_codebook_of_a_weight(seed, bits):
    weight = cases.random_matrix(seed, (3, 300), np.float32)
    importance = np.random.default_rng(seed).exponential(size=300)
    quantized = codebook(weight, bits=bits, importance=importance)
    assert quantized.codes.dtype == np.uint8
    assert quantized.centroids.dtype == np.float32
    assert quantized.centroids.shape == (3, 2**bits)
    assert quantized.codes.max() < 2**bits
    assert (np.diff(quantized.centroids) > 0).all()
    values = quantized.dequantize()
    for i, j in itertools.product(range(3), range(0, 300, 37)):
        assert values[i, j] == quantized.centroids[i, quantized.codes[i, j]]
    uniform = rtn(weight, bits=bits, group_size=None, scale_dtype=np.float32).dequantize()
    errors = [(importance * (v.astype(float) - weight) ** 2).sum() for v in (values, uniform)]
    assert errors[0] < errors[1]


def test_weights_are_not_written_to():
    weight = cases.random_matrix(1, (5, 24), np.float32)
    kept = weight.copy()
    codebook(weight, bits=3)
    np.testing.assert_array_equal(weight, kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 9}, "bits: expected 2 to 8, got 9"),
        ({"importance": np.ones(7)}, r"importance: expected shape \[8\] or \[2, 8\], got \[7\]"),
        ({"importance": -np.ones(8)}, "importance: expected finite values not below 0"),
        ({"weight": np.ones((2, 0))}, "weight: expected non-empty axes"),
        ({"weight": np.full((2, 8), np.nan)}, r"weight: expected finite .* got nan at \[0, 0\]"),
    ],
)
def test_errors_name_the_argument(options, message):
    with pytest.raises(ValueError, match=message):
        codebook(**({"weight": np.ones((2, 8), np.float32), "bits": 4} | options))
