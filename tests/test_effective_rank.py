"""The effective rank that GPTQ reports: a matter of the spectrum, whatever the number of tokens."""

import numpy as np
import pytest

from numbacalib.methods import LayerSettings, gptq, quantize_layer, shrinkage_for
from numbacalib.methods.solver import effective_rank
from numbacalib.statistics import InputStatistics

CHANNELS = 64


def reported(inputs, **options):
    hessian = (2 / len(inputs) * inputs.T @ inputs).astype(np.float32)
    weight = np.random.default_rng(9).normal(size=(8, inputs.shape[1])).astype(np.float32)
    return gptq(weight, hessian, bits=4, group_size=16, **options).report.effective_rank


def inputs_of(rank, tokens=4096, seed=0):
    """As many tokens, of only so many directions, with channels of very different sizes."""
    rng = np.random.default_rng(seed)
    distinct = rng.normal(size=(rank, CHANNELS)) * np.exp(rng.normal(size=CHANNELS))
    return distinct[rng.integers(0, rank, tokens)].astype(np.float32)


@pytest.mark.parametrize("shrinkage", [0, 0.1])
@pytest.mark.parametrize("percdamp", [1e-3, 0.01, 1])
@pytest.mark.parametrize("act_order", ["none", "desc", "group_aware"])
def test_it_is_the_determinant_against_independent_channels(act_order, percdamp, shrinkage):
    inputs = inputs_of(40)
    hessian = (2 / len(inputs) * inputs.T @ inputs).astype(np.float64)
    spread = np.diagonal(hessian)
    floor = np.sqrt(percdamp * spread.mean() + shrinkage * spread)
    scaled = (1 - shrinkage) * hessian / np.outer(floor, floor)
    _, together = np.linalg.slogdet(np.eye(CHANNELS) + scaled)
    expected = CHANNELS * together / np.log1p(np.diagonal(scaled)).sum()
    options = {"act_order": act_order, "static_groups": act_order == "desc"}
    options |= {"percdamp": percdamp, "shrinkage": shrinkage}
    assert reported(inputs, **options) == pytest.approx(expected, rel=1e-3)


def test_every_backend_reports_it(backend):
    inputs = inputs_of(5)
    hessian = (2 / len(inputs) * inputs.T @ inputs).astype(np.float32)
    weight = np.random.default_rng(9).normal(size=(8, CHANNELS)).astype(np.float32)
    report = backend.call(gptq, weight, hessian, bits=4, group_size=16).report
    assert report.effective_rank == pytest.approx(reported(inputs), rel=1e-3)


def test_repeating_tokens_adds_nothing():
    varied = np.random.default_rng(1).normal(size=(4096, CHANNELS)).astype(np.float32)
    assert reported(varied) > 0.98 * CHANNELS
    ranks = [reported(inputs_of(rank)) for rank in (1, 4, 16, 64)]
    assert ranks == sorted(ranks)
    assert ranks[0] < 3
    assert ranks[1] < 12
    assert reported(np.tile(inputs_of(4, tokens=64), (64, 1))) == pytest.approx(
        reported(inputs_of(4, tokens=64)), rel=1e-3
    )
    assert reported(inputs_of(4), shrinkage=0.1) < 1.5 * ranks[1]  # of what was there before
    assert reported(inputs_of(4), shrinkage=1) == CHANNELS


def test_other_dampings_give_about_the_same():
    inputs = inputs_of(8)
    found = [reported(inputs, percdamp=percdamp) for percdamp in (1e-4, 0.01, 0.03)]
    assert max(found) < 2 * min(found)
    varied = np.random.default_rng(1).normal(size=(4096, CHANNELS)).astype(np.float32)
    for percdamp in (0, 1, 1e6):
        assert 0.9 * CHANNELS < reported(varied, percdamp=percdamp) <= CHANNELS


def test_dead_channels_do_not_count():
    inputs = np.random.default_rng(1).normal(size=(4096, CHANNELS)).astype(np.float32)
    inputs[:, 10:] = 0
    assert reported(inputs) == pytest.approx(10, rel=0.02)
    assert reported(np.zeros_like(inputs)) == 0
    assert effective_rank(np.array([2.0, 0.0]), np.array([1.0, 1.0]), 0.0) <= 1


@pytest.mark.parametrize("repeated", [1, 128])
def test_shrinkage_auto_follows_the_tokens_that_differ(repeated):
    """Nobody gains by counting a token more than once: other texts then lose more than by rounding."""
    rng = np.random.default_rng(5)
    mixing = rng.normal(size=(CHANNELS, CHANNELS)) / 8 + np.eye(CHANNELS)
    few, others = (rng.normal(size=(rows, CHANNELS)) @ mixing for rows in (8, 4096))
    statistics = InputStatistics(CHANNELS)
    statistics.update(np.tile(few, (repeated, 1)).astype(np.float32))
    weight = rng.normal(size=(64, CHANNELS)).astype(np.float32)
    losses = []
    for shrinkage in (None, shrinkage_for(statistics.hessian, len(few) * repeated)):
        settings = LayerSettings(bits=3, group_size=16, shrinkage=shrinkage)
        quantized, report = quantize_layer("q", weight, statistics, settings)
        losses.append(float(np.square(others @ (weight - quantized.dequantize()).T).sum()))
    assert report.full_rank == (repeated > 1)
    assert losses[0] < 0.8 * losses[1] if repeated > 1 else losses[0] == losses[1]
