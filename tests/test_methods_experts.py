"""Equal layers together, and experts that saw few tokens."""

import dataclasses

import numpy as np
import pytest

from numbacalib.methods import (
    ExpertInputs,
    LayerSettings,
    output_loss,
    quantize_each,
    quantize_experts,
    quantize_layer,
)
from numbacalib.statistics import InputStatistics

CHANNELS, ROWS = 32, 5
SETTINGS = LayerSettings(
    bits=3,
    group_size=8,
    symmetric=True,
    ranges="weighted",
    act_order="desc",
    static_groups=True,
    scale_dtype=np.float32,
)


def statistics_of(inputs, backend=None):
    statistics = InputStatistics(CHANNELS)
    if len(inputs):
        statistics.update(inputs if backend is None else backend.array(inputs))
    return statistics


def inputs_of(seed, tokens, directions=CHANNELS, mixing=0):
    """Correlated tokens; those of one `mixing` are correlated alike."""
    rng = np.random.default_rng(1000 + mixing)
    mix = rng.normal(size=(directions, CHANNELS)) * np.exp(rng.normal(size=CHANNELS))
    drawn = np.random.default_rng(seed).normal(size=(tokens, directions))
    return (drawn @ mix).astype(np.float32)


def expert(inputs, pooled, backend=None):
    """What a model would say of an expert; the layer has all tokens `pooled`."""
    half = len(inputs) // 2

    def halves():
        return statistics_of(inputs[:half], backend), statistics_of(inputs[half:], backend)

    return ExpertInputs(
        statistics_of(inputs, backend), halves, lambda: statistics_of(pooled, backend)
    )


def weights_of(count, backend=None):
    rng = np.random.default_rng(3)
    drawn = {f"experts.{e}": rng.normal(size=(ROWS, CHANNELS)) for e in range(count)}
    place = (lambda array: array) if backend is None else backend.array
    return {name: place(array.astype(np.float32)) for name, array in drawn.items()}


def same_report(left, right):
    """Equal but for the time it took, and for the last digits of sums."""
    left, right = (dataclasses.asdict(report) for report in (left, right))
    for report in (left, right):
        del report["seconds"]
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert right[key] == (pytest.approx(value, rel=1e-4) if type(value) is float else value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shrinkage": None, "ranges": "full", "refit": True, "symmetric": False},
    ],
)
def test_layers_together_are_what_each_is_alone(backend, changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    weights = weights_of(2, backend)
    statistics = [statistics_of(inputs_of(e, 40), backend) for e in range(2)]
    together = quantize_each(weights, statistics, settings)
    for (name, weight), own, (quantized, report) in zip(
        weights.items(), statistics, together, strict=True
    ):
        expected, wanted = quantize_layer(name, weight, own, settings)
        assert quantized == expected
        same_report(report, wanted)


def test_no_layers_are_none():
    assert quantize_each({}, [], SETTINGS) == []


def test_an_expert_with_tokens_enough_is_solved_from_its_own():
    pooled = inputs_of(9, 400)
    experts = [expert(inputs_of(e, 300, mixing=e), pooled) for e in range(2)]
    weights = weights_of(2)
    found = quantize_experts(weights, experts, SETTINGS)
    for (name, weight), inputs, (quantized, report) in zip(
        weights.items(), experts, found, strict=True
    ):
        assert quantized == quantize_layer(name, weight, inputs.own, SETTINGS)[0]
        assert (report.tokens, report.remedy) == (300, None)


def test_an_expert_that_no_token_reached_is_solved_from_all(backend):
    pooled = inputs_of(9, 40)
    weights = weights_of(1, backend)
    inputs = expert(inputs_of(0, 0), pooled, backend)
    ((quantized, report),) = quantize_experts(weights, [inputs], SETTINGS)
    expected, wanted = quantize_layer(
        "experts.0", weights["experts.0"], statistics_of(pooled, backend), SETTINGS
    )
    assert quantized == expected
    assert (report.tokens, report.remedy, report.full_rank) == (0, "pooled", False)
    assert report.loss == pytest.approx(wanted.loss)


def test_one_token_is_no_judge():
    inputs = expert(inputs_of(0, 1), inputs_of(9, 400))
    ((_, report),) = quantize_experts(weights_of(1), [inputs], SETTINGS)
    assert (report.tokens, report.remedy) == (1, "pooled")


def test_the_remedy_is_what_loses_less_on_tokens_of_the_expert():
    """Few tokens like all others are solved from all; few that are unlike them from their own."""
    pooled = inputs_of(9, 400)
    alike = inputs_of(0, 6)
    unlike = inputs_of(1, 8, directions=2, mixing=7)
    experts = [expert(alike, pooled), expert(unlike, pooled)]
    weights = weights_of(2)
    found = quantize_experts(weights, experts, SETTINGS)
    assert [report.remedy for _, report in found] == ["pooled", "shrinkage"]
    assert [report.tokens for _, report in found] == [6, 8]
    for (name, weight), inputs, (quantized, report) in zip(
        weights.items(), experts, found, strict=True
    ):
        assert report.loss == pytest.approx(output_loss(weight, quantized, inputs.own), rel=1e-4)
        other = inputs.pooled() if report.remedy == "shrinkage" else inputs.own
        shrinking = dataclasses.replace(SETTINGS, shrinkage=None)
        rejected = quantize_layer(name, weight, other, shrinking)[0]
        fresh = inputs_of(50, 3000, *((2, 7) if report.remedy == "shrinkage" else ()))
        unseen = statistics_of(fresh)
        assert output_loss(weight, quantized, unseen) < output_loss(weight, rejected, unseen)


def test_round_to_nearest_asks_for_no_tokens():
    def fail():
        raise AssertionError("asked for")

    plain = LayerSettings(method="rtn", group_size=8)
    inputs = ExpertInputs(InputStatistics(CHANNELS), fail, fail)
    ((_, report),) = quantize_experts(weights_of(1), [inputs], plain)
    assert (report.method, report.remedy, report.tokens) == ("rtn", None, None)


def test_errors_name_the_layer(backend):
    weights = weights_of(2)
    weights["experts.1"][3, 4] = np.nan
    weights = {name: backend.array(weight) for name, weight in weights.items()}
    statistics = [statistics_of(inputs_of(e, 100), backend) for e in range(2)]
    named = r"^experts\.(1|0 to experts\.1): weights?: expected finite"
    with pytest.raises(ValueError, match=named):
        quantize_each(weights, statistics, SETTINGS)
