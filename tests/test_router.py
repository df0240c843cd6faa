"""Routing and the rows of experts, on every backend, against float64 definitions."""

import naive_moe
import numpy as np
import pytest
from cases import tolerance

from numbacalib.ops.matrix import add_rows
from numbacalib.ops.router import route
from numbacalib.spec.router import Routing

ROUTINGS = {
    "mixtral": {"experts": 2},
    "qwen2_moe": {"experts": 4, "normalized": False},
    "one expert": {"experts": 1},
    "all experts": {"experts": 16},
    "deepseek_v2": {
        "experts": 3,
        "normalized": False,
        "factor": 16.0,
        "groups": 4,
        "kept_groups": 2,
    },
    "glm4_moe": {"experts": 4, "scoring": "sigmoid", "factor": 1.5},
    "deepseek_v3": {
        "experts": 4,
        "scoring": "sigmoid",
        "factor": 2.5,
        "groups": 4,
        "kept_groups": 2,
        "group_best": 2,
    },
}


def scores_of(count, experts=16, seed=0, spread=3):
    return spread * np.random.default_rng(seed).standard_normal((count, experts), np.float32)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("settings", ROUTINGS.values(), ids=ROUTINGS)
def test_experts_and_weights(backend, settings, biased):
    scores = scores_of(13)
    bias = scores_of(1, seed=1, spread=0.2)[0] if biased else None
    experts, weights = backend.call(route, scores, Routing(**settings), bias)
    assert (experts.dtype, weights.dtype) == (np.int64, np.float32)
    for i, row in enumerate(scores):
        chosen, expected = naive_moe.route(row, bias=bias, **settings)
        assert experts[i].tolist() == chosen
        np.testing.assert_allclose(weights[i], expected, rtol=8 * tolerance(np.float32, 16))


def test_a_bias_counts_in_the_choice_alone(backend):
    scores = np.zeros((1, 4), np.float32)
    bias = np.array([0, 0, 5, -5], np.float32)
    routing = Routing(experts=2, scoring="sigmoid", normalized=False)
    experts, weights = backend.call(route, scores, routing, bias)
    assert experts.tolist() == [[2, 0]]
    assert weights.tolist() == [[0.5, 0.5]]


def test_equal_scores_go_by_their_index(backend):
    for groups in ({}, {"groups": 2, "kept_groups": 1, "group_best": 2}):
        experts, weights = backend.call(route, np.zeros((2, 8), "f4"), Routing(3, **groups))
        assert experts.tolist() == [[0, 1, 2]] * 2
        np.testing.assert_allclose(weights, 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_scores_of_any_size_have_finite_weights(backend, scoring):
    scores = np.array([[1e30, 0, -1e30], [-1e30, -1e30, -2e30]], np.float32)
    experts, weights = backend.call(route, scores, Routing(experts=2, scoring=scoring))
    assert experts.tolist() == [[0, 1]] * 2
    assert np.isfinite(weights).all()


def test_what_is_not_finite_shows_in_the_weights_of_its_token(backend):
    scores = scores_of(3, experts=4)
    scores[1] = np.nan
    experts, weights = backend.call(route, scores, Routing(experts=2))
    assert ((experts >= 0) & (experts < 4)).all()
    assert np.isnan(weights[1]).all()
    assert np.isfinite(weights[[0, 2]]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_adding_rows(backend, dtype):
    rng = np.random.default_rng(0)
    target = rng.standard_normal((9, 5), np.float32)
    rows = rng.standard_normal((4, 5)).astype(dtype)
    factors, where = rng.standard_normal(4, np.float32), np.array([8, 0, 3, 2])
    expected = target.astype(np.float64)
    expected[where] += factors.astype(np.float64)[:, None] * rows.astype(np.float64)
    moved = backend.array(target.copy())
    add_rows(moved, where, backend.array(rows), backend.array(factors))
    np.testing.assert_allclose(backend.numpy(moved), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("scores", "routing", "bias", "named"),
    [
        (
            np.zeros((2, 4), "f4"),
            Routing(experts=5),
            None,
            "routing.experts: expected 1 to 4, got 5",
        ),
        (np.zeros((2, 4), "f4"), Routing(experts=1), np.zeros(3, "f4"), "bias: expected shape"),
        (np.zeros(4, "f4"), Routing(experts=1), None, "scores: expected shape"),
    ],
)
def test_what_does_not_fit_is_named(scores, routing, bias, named):
    with pytest.raises(ValueError, match=named):
        route(scores, routing, bias)
