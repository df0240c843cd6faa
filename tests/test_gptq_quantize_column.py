import cases
import naive
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import numbacalib

TIE = {np.dtype(np.float32): 1e-3, np.dtype(np.float64): 1e-9}
"""How far from a rounding tie a code may differ, in steps of the grid: the weights are compensated by
sums whose rounding the float64 loop does not share."""


def upper_factor(seed, channels):
    return naive.gptq_inverse_hessian(cases.random_hessian(seed, channels))


def assert_same_up_to_ties(values, scales, zeros, weight, factor, bits, group_size, symmetric):
    """In each row the first code that differs from the naive loop's must be a tie of its own.

    The columns after such a tie are compensated for another error, so they are not compared.
    """
    expected = naive.gptq_quantize_column(weight, factor, bits, group_size, symmetric)
    margin = TIE[values.dtype]
    for i, (codes, naive_scales, naive_zeros, naive_values) in enumerate(
        zip(*expected, strict=True)
    ):
        same_grid = np.isclose(scales[i], naive_scales, rtol=margin) & (zeros[i] == naive_zeros)
        steps = np.repeat(naive_scales, group_size)
        differs = np.abs(values[i] - naive_values) > margin * steps * (1 + np.abs(codes))
        first = int(np.argmax(differs)) if differs.any() else len(codes)
        assert same_grid[: -(-first // group_size)].all()
        if differs.any():
            compensated = naive_compensated(weight[i], factor, naive_values, first)
            position = compensated / steps[first]
            assert abs(position - np.floor(position) - 0.5) < 50 * margin


def naive_compensated(row, factor, values, column):
    """The row's weight at `column` as compensated for every column before it."""
    w = np.array(row, np.float64)
    for j in range(column):
        w[j + 1 :] -= (w[j] - values[j]) / factor[j, j] * factor[j, j + 1 :]
    return w[column]


def check(backend, weight, factor, bits, group_size, symmetric):
    arguments = backend.array(weight), backend.array(factor)
    result = numbacalib.gptq_quantize_column(*arguments, bits, group_size, symmetric)
    values, scales, zeros = (backend.numpy(array) for array in result)
    dtype = cases.result_dtype(weight, factor)
    assert values.dtype == scales.dtype == zeros.dtype == dtype
    assert scales.shape == zeros.shape == (len(weight), weight.shape[1] // group_size)
    # on the symmetric grid the largest weight of a group lies half-way between two codes
    if dtype == np.float64 and not symmetric:
        expected = naive.gptq_quantize_column(weight, factor, bits, group_size, symmetric)
        np.testing.assert_allclose(scales, expected[1], rtol=1e-9)
        np.testing.assert_array_equal(zeros, expected[2])
        steps = np.repeat(expected[1], group_size, axis=1)
        codes = np.rint(values / steps + np.repeat(zeros, group_size, axis=1))
        np.testing.assert_array_equal(codes, expected[0])
    else:
        assert_same_up_to_ties(values, scales, zeros, weight, factor, bits, group_size, symmetric)


@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 4),
    group_size=st.integers(1, 9),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    dtype=st.sampled_from(cases.DTYPES),
    layout=st.sampled_from(cases.LAYOUTS),
    seed=st.integers(0, 2**32 - 1),
)
def test_agrees_with_the_definition(
    backend, rows, groups, group_size, bits, symmetric, dtype, layout, seed
):
    channels = groups * group_size
    weight = cases.random_matrix(seed, (rows, channels), dtype, layout)
    factor = upper_factor(seed % 97, channels)
    check(backend, weight, factor, bits, group_size, symmetric)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("channels", "group_size"),
    [(300, 20), (300, 100), (384, 128), (387, 129), (300, 300), (600, 50), (341, 341)],
)
def test_blocks_change_nothing(backend, channels, group_size, dtype, symmetric):
    """Groups smaller than, equal to and larger than a block, in widths beyond a block and a panel."""
    if backend.name == "cudasim":
        channels, group_size = (
            channels // 10 // (group_size // 10) * (group_size // 10),
            group_size // 10,
        )
    weight = cases.random_matrix(1, (3, channels), dtype)
    check(backend, weight, upper_factor(2, channels).astype(dtype), 4, group_size, symmetric)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_factor_of_any_dtype_and_layout(dtype, layout):
    """Wider than a panel, so that the products between panels read the factor too."""
    weight = cases.random_matrix(1, (2, 300), np.float64)
    factor = cases.laid_out(upper_factor(2, 300).astype(dtype), layout)
    values, scales, zeros = numbacalib.gptq_quantize_column(weight, factor, 4, 20, False)
    expected = naive.gptq_quantize_column(weight, factor, 4, 20, False)
    np.testing.assert_allclose(values, expected[3], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(scales, expected[1], rtol=1e-9)
    np.testing.assert_array_equal(zeros, expected[2])


def test_more_rows_than_a_tile(backend):
    rows = 5 if backend.name == "cudasim" else 67
    check(backend, cases.random_matrix(1, (rows, 12)), upper_factor(1, 12), 3, 4, False)


def test_no_group_size_is_one_scale_a_row(backend):
    weight, factor = cases.random_matrix(1, (3, 8), np.float32), np.eye(8, dtype=np.float32)
    arguments = backend.array(weight), backend.array(factor)
    found = numbacalib.gptq_quantize_column(*arguments, 4, None, False)
    expected = numbacalib.gptq_quantize_column(*arguments, 4, 8, False)
    for array, same in zip(found, expected, strict=True):
        np.testing.assert_array_equal(backend.numpy(array), backend.numpy(same))
    assert backend.numpy(found[1]).shape == (3, 1)


def test_zero_group_and_constant_group(backend):
    weight = np.zeros((2, 8))
    weight[1] = 0.25
    values, scales, zeros = (
        backend.numpy(a)
        for a in numbacalib.gptq_quantize_column(
            backend.array(weight), backend.array(np.eye(8)), 4, 4, False
        )
    )
    np.testing.assert_array_equal(values[0], 0)
    np.testing.assert_array_equal(scales[0], 1)
    np.testing.assert_allclose(values[1], 0.25)
    np.testing.assert_array_equal(zeros, 0)


@pytest.mark.parametrize("symmetric", [False, True])
def test_half_integers_round_to_even_and_clip_at_the_ends(backend, symmetric):
    scale = 0.5
    steps = np.array([[-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5]])
    weight = np.concatenate([steps * scale, [[-7.5 * scale]], [[7.5 * scale]]], axis=1)
    values, _, _ = (
        backend.numpy(a)
        for a in numbacalib.gptq_quantize_column(
            backend.array(weight), backend.array(np.eye(10)), 4, 10, symmetric
        )
    )
    expected = naive.round_to_nearest(weight, 4, 10, symmetric)[3]
    np.testing.assert_array_equal(values, expected)
    if symmetric:
        np.testing.assert_array_equal(values[0] / scale, [-4, -2, -2, 0, 0, 2, 2, 4, -8, 7])


def test_symmetric_argument_is_the_inverse_hessian_itself(backend):
    hessian = cases.random_hessian(3, 12)
    weight = cases.random_matrix(4, (3, 12))
    inverse = np.linalg.inv(hessian)
    inverse = (inverse + inverse.T) / 2
    given_inverse = numbacalib.gptq_quantize_column(
        backend.array(weight), backend.array(inverse), 4, 4, False
    )
    factor = naive.gptq_inverse_hessian(hessian, percdamp=0)
    expected = naive.gptq_quantize_column(weight, factor, 4, 4, False)
    np.testing.assert_allclose(backend.numpy(given_inverse[0]), expected[3], rtol=1e-9, atol=1e-12)


def test_compensation_lowers_the_loss(backend):
    hessian = cases.random_hessian(3, 24)
    weight = cases.random_matrix(4, (16, 24))
    factor = numbacalib.gptq_inverse_hessian(hessian)
    values = backend.numpy(
        numbacalib.gptq_quantize_column(backend.array(weight), backend.array(factor), 3, 8, False)[
            0
        ]
    )
    rounded = naive.round_to_nearest(weight, 3, 8, False)[3]
    assert naive.proxy_loss(weight, values, hessian) < naive.proxy_loss(weight, rounded, hessian)


def test_out_receives_the_results(backend):
    weight = cases.random_matrix(1, (3, 8), np.float32)
    factor = np.eye(8, dtype=np.float32)
    shapes = (3, 8), (3, 2), (3, 2)
    out = tuple(backend.array(np.full(shape, np.nan, np.float32)) for shape in shapes)
    result = numbacalib.gptq_quantize_column(
        backend.array(weight), backend.array(factor), 4, 4, True, out=out
    )
    fresh = numbacalib.gptq_quantize_column(
        backend.array(weight), backend.array(factor), 4, 4, True
    )
    for given_array, returned, expected in zip(out, result, fresh, strict=True):
        assert returned is given_array
        np.testing.assert_array_equal(backend.numpy(returned), backend.numpy(expected))


@given(seed=st.integers(0, 999), bits=st.integers(2, 8), symmetric=st.booleans())
def test_values_lie_on_their_grid(backend, seed, bits, symmetric):
    weight = cases.random_matrix(seed, (2, 12), np.float32)
    factor = upper_factor(seed % 7, 12).astype(np.float32)
    assume(np.isfinite(factor).all())
    values, scales, zeros = (
        backend.numpy(a)
        for a in numbacalib.gptq_quantize_column(
            backend.array(weight), backend.array(factor), bits, 6, symmetric
        )
    )
    steps, offsets = np.repeat(scales, 6, axis=1), np.repeat(zeros, 6, axis=1)
    codes = values / steps + offsets
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)
    low = -(2 ** (bits - 1)) if symmetric else 0
    assert codes.min() > low - 0.01
    assert codes.max() < low + 2**bits - 0.99


EYE = np.eye(4)
SKEW = EYE + np.diag([0.5], 3) + np.diag([0.1], -3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.ones((2, 4)), np.eye(3), 4, 2, True), ValueError, r"h_inv: .*\[4, 4\].*\[3, 3\]"),
        ((np.ones((2, 4)), EYE, 9, 2, True), ValueError, "num_bits: expected 2 to 8, got 9"),
        ((np.ones((2, 4)), EYE, 4.0, 2, True), TypeError, "num_bits: .*integer.*float"),
        ((np.ones((2, 4)), EYE, 4, 3, True), ValueError, "group_size: .*divisor of K = 4, got 3"),
        ((np.ones((2, 4)), EYE, 4, 8, True), ValueError, "group_size: expected 1 to 4, got 8"),
        ((np.ones((2, 4)), EYE, 4, 2, "no"), TypeError, "symmetric: .*bool.*str"),
        ((np.ones((2, 4)), -EYE, 4, 2, True), ValueError, r"h_inv: .*positive diagonal.*\[0, 0\]"),
        ((np.ones((2, 4)), SKEW, 4, 2, True), ValueError, "h_inv: .*triangular or a symmetric"),
        ((np.full((2, 4), np.nan), EYE, 4, 2, True), ValueError, r"weight: .*nan at \[0, 0\]"),
        (
            (np.ones((2, 4)), np.full((4, 4), np.inf), 4, 2, True),
            ValueError,
            "h_inv: expected finite",
        ),
    ],
)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        numbacalib.gptq_quantize_column(*arguments)


def test_indefinite_symmetric_matrix_is_refused():
    indefinite = np.array([[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(ValueError, match="h_inv: expected a positive definite matrix"):
        numbacalib.gptq_quantize_column(np.ones((1, 2)), indefinite, 4, 2, True)
