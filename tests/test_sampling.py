"""Draws from softmaxes, on every backend, against SplitMix64 in Python's integers."""

import math

import naive
import numpy as np
import pytest

from numbacalib.ops.sampling import add_scores, drawn, new_state


def scores_of(rows, entries, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, entries)).astype(np.float32) * 3


def draws(backend, scores, seed, rows=None, entries=None):
    """Draw with the scores in parts of so many rows and entries."""
    rows, entries = rows or len(scores), entries or scores.shape[1]
    state = backend.array(new_state(len(scores), scores))
    for start in range(0, len(scores), rows):
        for first in range(0, scores.shape[1], entries):
            part = np.ascontiguousarray(scores[start : start + rows, first : first + entries])
            backend.call(add_scores, part, start, first, seed, state)
    return drawn(backend.numpy(state))


@pytest.mark.parametrize("seed", [0, 7, 2**31])
def test_draws_are_those_of_the_definition(backend, seed):
    scores = scores_of(5, 37)
    np.testing.assert_array_equal(draws(backend, scores, seed), naive.draw(scores, seed))


@pytest.mark.parametrize(("rows", "entries"), [(1, 37), (2, 10), (5, 1)])
def test_parts_give_the_same_draws(backend, rows, entries):
    scores = scores_of(5, 37, seed=1)
    np.testing.assert_array_equal(draws(backend, scores, 3, rows, entries), naive.draw(scores, 3))


def test_what_has_no_probability_is_not_drawn(backend):
    scores = scores_of(6, 8)
    scores[:, ::2] = -np.inf
    scores[:3, 1] = np.nan
    found = draws(backend, scores, 1)
    assert (found % 2 == 1).all()
    assert (found[:3] != 1).all()
    assert (draws(backend, np.full((2, 4), np.nan, np.float32), 1) == 0).all()


def test_frequencies_are_the_probabilities():
    """Within four standard errors, over rows and over seeds."""
    logits = np.array([0.0, 1.0, -2.0, 3.0, 2.5], np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    count = 20000
    scores = np.tile(logits, (count, 1))
    for found in (
        _draw(scores, 5),
        np.concatenate([_draw(scores[:50], seed) for seed in range(count // 50)]),
    ):
        shares = np.bincount(found, minlength=5) / count
        errors = np.sqrt(probabilities * (1 - probabilities) / count)
        assert (abs(shares - probabilities) < 4 * errors).all()


def _draw(scores, seed):
    state = new_state(len(scores), scores)
    add_scores(scores, 0, 0, seed, state)
    return drawn(state)


def test_uniform_numbers_exclude_both_ends():
    """The largest and the least bits: no logarithm is infinite."""
    for bits in (0, 2**64 - 1):
        u = naive.unit(bits)
        assert 0 < u < 1
        assert math.isfinite(math.log(-math.log(u)))
