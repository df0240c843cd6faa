import cases
import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numbacalib


def check(backend, activations, weights):
    result = numbacalib.awq_channel_scores(backend.array(activations), backend.array(weights))
    scores = backend.numpy(result)
    assert scores.shape == (activations.shape[1],)
    assert scores.dtype == cases.result_dtype(activations, weights)
    assert scores.flags.c_contiguous
    np.testing.assert_allclose(
        scores,
        naive.awq_channel_scores(activations, weights),
        rtol=cases.tolerance(scores.dtype, len(weights)),
    )


@given(data=st.data())
def test_agrees_with_the_definition(backend, data):
    activations = data.draw(cases.matrices())
    check(backend, activations, data.draw(cases.matrices(columns=activations.shape[1])))


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (700, 3), (2, 4099), (65, 257), (1000, 70)])
def test_sizes_around_the_tiles(backend, rows, columns, layout):
    if backend.name == "cudasim" and rows * columns > 2100:
        rows, columns = rows // 16 + 1, columns // 16 + 1
    check(
        backend,
        cases.random_matrix(1, (rows, columns), np.float32, layout),
        cases.random_matrix(2, (rows + 1, columns), np.float32, layout),
    )


def test_non_finite_values_show_in_their_own_channel(backend):
    activations = cases.random_matrix(1, (6, 5), np.float32)
    weights = cases.random_matrix(2, (4, 5), np.float32)
    activations[2, 1] = np.nan
    activations[3, 1] = np.inf
    activations[0, 2] = -np.inf
    weights[1, 3] = np.nan
    scores = backend.numpy(
        numbacalib.awq_channel_scores(backend.array(activations), backend.array(weights))
    )
    np.testing.assert_array_equal(np.isnan(scores), [False, True, False, True, False])
    np.testing.assert_array_equal(np.isinf(scores), [False, False, True, False, False])


def test_tokens_on_several_axes_are_rows(backend):
    activations = cases.random_matrix(1, (6, 5), np.float32)
    weights = backend.array(cases.random_matrix(2, (4, 5), np.float32))
    expected = numbacalib.awq_channel_scores(backend.array(activations), weights)
    found = numbacalib.awq_channel_scores(backend.array(activations.reshape(2, 3, 5)), weights)
    np.testing.assert_array_equal(backend.numpy(found), backend.numpy(expected))


def test_infinite_activation_and_zero_weight_make_nan(backend):
    activations = np.array([[np.inf, 1.0]], np.float32)
    weights = np.array([[0.0, 0.0], [1.0, 1.0]], np.float32)
    scores = backend.numpy(
        numbacalib.awq_channel_scores(backend.array(activations), backend.array(weights))
    )
    np.testing.assert_array_equal(scores, [np.nan, 0.5])


def test_out_receives_the_result(backend):
    activations = cases.random_matrix(1, (6, 5), np.float32)
    weights = cases.random_matrix(2, (4, 5), np.float32)
    out = backend.array(np.full(5, np.nan, np.float32))
    result = numbacalib.awq_channel_scores(
        backend.array(activations), backend.array(weights), out=out
    )
    assert result is out
    np.testing.assert_allclose(
        backend.numpy(out), naive.awq_channel_scores(activations, weights), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("activations", "weights", "out", "error", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), None, ValueError, r"weights: .*\[M, 3\].*\[2, 4\]"),
        (np.zeros(3), np.zeros((2, 3)), None, ValueError, r"activations: .*\[N, K\].*\[3\]"),
        (np.zeros((2, 0, 3)), np.zeros((2, 3)), None, ValueError, "activations: .*non-empty"),
        (np.zeros((5, 2, 3)), np.zeros((2, 4)), None, ValueError, r"weights: .*\[M, 3\]"),
        (np.zeros((0, 3)), np.zeros((2, 3)), None, ValueError, "activations: .*non-empty"),
        (np.zeros((2, 3), int), np.zeros((2, 3)), None, TypeError, "activations: .*int64"),
        (np.zeros((2, 3), ">f4"), np.zeros((2, 3)), None, TypeError, "activations: .*>f4"),
        ([[1.0]], np.zeros((2, 1)), None, TypeError, "activations: .*list"),
        (np.zeros((2, 3)), np.zeros((2, 3)), np.zeros(3, "f4"), ValueError, "out: .*float64"),
    ],
)
def test_errors_name_the_argument(activations, weights, out, error, message):
    with pytest.raises(error, match=message):
        numbacalib.awq_channel_scores(activations, weights, out=out)
