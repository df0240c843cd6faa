"""One layer by any method with its report, and layers solved from what is on disk."""

import dataclasses
import logging

import cases
import numpy as np
import pytest

from numbacalib.formats.gguf_scales import BlockFinder
from numbacalib.methods import (
    LayerSettings,
    RangeSearch,
    awq_clip,
    clipped_share,
    codebook,
    descend_codes,
    gptq,
    output_loss,
    propagated_target,
    proxy_loss,
    quantize_layer,
    refit_scales,
    rtn,
    shrinkage_for,
    solve,
)
from numbacalib.statistics import (
    InputStatistics,
)


def collected(seed, tokens=64, channels=24):
    statistics = InputStatistics(channels)
    inputs = cases.random_matrix(seed, (tokens, channels), np.float32)
    statistics.update(inputs @ cases.random_matrix(seed + 1, (channels, channels), np.float32))
    return statistics


@pytest.fixture
def layer():
    return cases.random_matrix(5, (6, 24), np.float32), collected(1)


def assert_same(left, right):
    np.testing.assert_array_equal(left.codes, right.codes)
    np.testing.assert_array_equal(left.scales, right.scales)
    np.testing.assert_array_equal(left.zeros, right.zeros)


PLAIN = {"bits": 3, "group_size": 8}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"method": "rtn"}, lambda w, _: rtn(w, **PLAIN)),
        ({"method": "rtn", "ranges": "mse"}, lambda w, _: rtn(w, **PLAIN, search=RangeSearch())),
        (
            {"method": "rtn", "ranges": "weighted"},
            lambda w, s: rtn(w, **PLAIN, search=RangeSearch(), importance=s.mean_square),
        ),
        ({"method": "rtn", "ranges": "clip"}, lambda w, s: awq_clip(w, s.hessian, **PLAIN)),
        ({}, lambda w, s: gptq(w, s.hessian, **PLAIN)),
        (
            {"percdamp": 0.1, "act_order": "desc", "static_groups": True, "ranges": "mse"},
            lambda w, s: gptq(
                w,
                s.hessian,
                **PLAIN,
                percdamp=0.1,
                act_order="desc",
                static_groups=True,
                search=RangeSearch(),
            ),
        ),
        (
            {"shrinkage": None},
            lambda w, s: gptq(w, s.hessian, **PLAIN, shrinkage=shrinkage_for(s.hessian, s.tokens)),
        ),
    ],
)
def test_settings_reach_their_method(layer, settings, expected):
    weight, statistics = layer
    quantized, report = quantize_layer("q", weight, statistics, LayerSettings(**PLAIN, **settings))
    assert_same(quantized, expected(weight, statistics))
    assert report.loss == pytest.approx(proxy_loss(weight, quantized, statistics.hessian))
    plain = proxy_loss(weight, rtn(weight, **PLAIN), statistics.hessian)
    assert report.rtn_loss == pytest.approx(plain)


@pytest.mark.parametrize(
    ("bits", "given", "norm"), [(2, None, 3.0), (3, None, 2.4), (2, 2.4, 2.4), (4, 2.0, 2.0)]
)
def test_the_search_is_harder_on_large_errors_at_two_bits(layer, bits, given, norm):
    weight, statistics = layer
    settings = LayerSettings(method="rtn", bits=bits, group_size=8, ranges="mse", range_norm=given)
    quantized, _ = quantize_layer("q", weight, statistics, settings)
    search = RangeSearch(norm=norm)
    assert_same(quantized, rtn(weight, bits=bits, group_size=8, search=search))


@pytest.mark.parametrize("ranges", ["full", "mse"])
def test_a_full_range_takes_any_ranges_but_clips(layer, ranges):
    weight, statistics = layer
    settings = LayerSettings(bits=3, group_size=8, symmetric=True, full_range=True, ranges=ranges)
    quantized, _ = quantize_layer("q", weight, statistics, settings)
    search = RangeSearch(full_range=True, points=1 if ranges == "full" else 100)
    options = {"bits": 3, "group_size": 8, "symmetric": True, "search": search}
    assert_same(quantized, gptq(weight, statistics.hessian, **options))


PROPAGATED = {"target": "propagated", "target_strength": 0.7}


def drifted():
    """Statistics of 64 tokens that the layers before have changed."""
    statistics = InputStatistics(24)
    original = cases.random_matrix(21, (64, 24), np.float32)
    inputs = original + cases.random_matrix(22, (64, 24), np.float32, scale=0.1)
    statistics.update(inputs, original, cases.random_matrix(23, (64, 6), np.float32, scale=0.1))
    return statistics


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"method": "rtn"}, lambda w, s: rtn(w, **PLAIN)),
        ({"method": "rtn", "ranges": "clip"}, lambda w, s: awq_clip(w, s.hessian, **PLAIN)),
        ({}, lambda w, s: gptq(w, s.hessian, **PLAIN)),
        (
            {"ranges": "mse", "range_norm": 3.0},
            lambda w, s: gptq(w, s.hessian, **PLAIN, search=RangeSearch(norm=3.0)),
        ),
    ],
)
def test_every_method_takes_a_propagated_target_and_a_refit(settings, expected, refit):
    weight, statistics = cases.random_matrix(20, (6, 24), np.float32), drifted()
    chosen = LayerSettings(**PLAIN, **settings, **PROPAGATED, refit=refit)
    quantized, report = quantize_layer("q", weight, statistics, chosen)
    s = statistics
    target = propagated_target(weight, s.hessian, s.cross, s.residual, strength=0.7)
    wanted = expected(target, statistics)
    if refit:
        wanted = refit_scales(target, wanted, statistics.hessian, zeros="integers")
    assert_same(quantized, wanted)
    assert report.loss == pytest.approx(output_loss(weight, quantized, statistics))
    plain = output_loss(weight, rtn(weight, **PLAIN), statistics)
    assert report.rtn_loss == pytest.approx(plain)


@pytest.mark.parametrize(
    ("settings", "shape", "expected"),
    [
        (
            {"method": "rtn"},
            (6, 24),
            lambda w, _, f: rtn(w, **PLAIN, search=RangeSearch(), importance=f),
        ),
        (
            {},
            (24,),
            lambda w, s, f: gptq(w, s.hessian, **PLAIN, search=RangeSearch(), importance=f),
        ),
    ],
)
def test_an_importance_weighs_the_ranges(layer, settings, shape, expected):
    weight, statistics = layer
    importance = np.random.default_rng(1).exponential(size=shape).astype(np.float32) ** 3
    weighted = LayerSettings(**PLAIN, **settings, ranges="weighted")
    quantized, _ = quantize_layer("q", weight, statistics, weighted, importance)
    assert_same(quantized, expected(weight, statistics, importance))
    other, _ = quantize_layer("q", weight, statistics, weighted)
    assert (other.codes != quantized.codes).any()


def test_codebooks_are_a_method_like_the_others(layer):
    weight, statistics = layer
    fisher = np.random.default_rng(1).exponential(size=weight.shape).astype(np.float32) ** 3
    for ranges, given, importance in (
        ("full", None, None),
        ("weighted", None, statistics.mean_square),
        ("weighted", fisher, fisher),
    ):
        settings = LayerSettings(method="kmeans", bits=3, ranges=ranges)
        quantized, report = quantize_layer("q", weight, statistics, settings, given)
        expected = codebook(weight, bits=3, importance=importance)
        np.testing.assert_array_equal(quantized.codes, expected.codes)
        np.testing.assert_array_equal(quantized.centroids, expected.centroids)
        assert report.loss == pytest.approx(proxy_loss(weight, expected, statistics.hessian))
        nearest = rtn(weight, bits=3, group_size=None)
        assert report.rtn_loss == pytest.approx(proxy_loss(weight, nearest, statistics.hessian))
        assert (report.group_size, report.clipped, report.tokens) == (24, None, 64)
    without, report = quantize_layer("q", weight, None, settings, fisher)
    np.testing.assert_array_equal(without.codes, quantized.codes)
    assert report.loss is None


def test_the_report_says_how_it_went(layer):
    weight, statistics = layer
    _, report = quantize_layer("model.q", weight, statistics, LayerSettings(**PLAIN))
    found = gptq(weight, statistics.hessian, **PLAIN).report
    expected = {
        "name": "model.q",
        "method": "gptq",
        "shape": (6, 24),
        "bits": 3,
        "group_size": 8,
        "tokens": 64,
        "full_rank": True,
        "dead": 0,
        "shrinkage": 0.0,
        "percdamp": 0.01,
        "damping": found.damping,
        "tries": 1,
        "smallest_pivot": found.smallest_pivot,
        "stored_bytes": None,
    }
    assert dataclasses.asdict(report) | expected == dataclasses.asdict(report)
    assert report.seconds > 0
    assert not report.fell_back


def test_rank_is_checked_against_live_channels():
    weight = cases.random_matrix(1, (2, 24), np.float32)
    for tokens, dead, full in ((23, 0, False), (24, 0, True), (23, 1, True), (5, 20, True)):
        statistics = InputStatistics(24)
        inputs = cases.random_matrix(2, (tokens, 24), np.float32)
        inputs[:, :dead] = 0
        statistics.update(inputs)
        _, report = quantize_layer("q", weight, statistics, LayerSettings(**PLAIN))
        assert (report.full_rank, report.dead, report.tokens) == (full, dead, tokens)


def test_more_damping_than_asked_for_is_said_with_the_layers_name(layer, caplog):
    weight, statistics = layer
    bad = InputStatistics(24)
    bad.tokens = 64
    bad.hessian = statistics.hessian - 0.05 * np.diagonal(statistics.hessian).mean() * np.eye(
        24, dtype=np.float32
    )
    with caplog.at_level(logging.WARNING, "numbacalib"):
        _, report = quantize_layer("model.q", weight, bad, LayerSettings(**PLAIN, percdamp=0))
    assert report.fell_back
    assert report.tries > 1
    assert (
        f"model.q: the Hessian was not positive definite with percdamp 0; {report.percdamp:g}"
        in (caplog.text)
    )
    strict = LayerSettings(**PLAIN, percdamp=0, damping_tries=1)
    with pytest.raises(np.linalg.LinAlgError, match="model.q: hessian: not positive definite"):
        quantize_layer("model.q", weight, bad, strict)


def test_clipped_share_counts_weights_past_the_grid():
    weight = cases.random_matrix(3, (16, 64), np.float32)
    for symmetric in (False, True):
        full = rtn(weight, bits=3, group_size=32, symmetric=symmetric)
        assert clipped_share(weight, full) == 0
    weight[3, 7] = 100 * np.abs(weight).max()
    searched = rtn(weight, bits=3, group_size=32, search=RangeSearch(least=0.0))
    errors = np.abs(weight - searched.dequantize())
    steps = np.repeat(searched.scales.astype(np.float32), 32, axis=1)
    assert clipped_share(weight, searched) == (errors > steps).mean() > 0


def test_what_is_missing_is_named(layer):
    weight, statistics = layer
    with pytest.raises(ValueError, match="statistics: expected one for each weight, none for k"):
        next(solve({"q": weight, "k": weight}, {"q": statistics}, LayerSettings()))
    with pytest.raises(ValueError, match="importance: expected one for each weight, none for q"):
        next(solve({"q": weight}, {"q": statistics}, LayerSettings(), {}))
    with pytest.raises(ValueError, match="q: importance: expected None with ranges 'mse'"):
        quantize_layer("q", weight, statistics, LayerSettings(ranges="mse"), np.ones(24))
    for settings in ({}, {"method": "rtn", "ranges": "weighted"}):
        with pytest.raises(ValueError, match="q: statistics: expected the layer's inputs"):
            quantize_layer("q", weight, None, LayerSettings(**PLAIN, **settings))
    with pytest.raises(ValueError, match="q: statistics: expected at least one token"):
        quantize_layer("q", weight, InputStatistics(24), LayerSettings(**PLAIN))
    quantized, report = quantize_layer("q", weight, None, LayerSettings(**PLAIN, method="rtn"))
    assert_same(quantized, rtn(weight, **PLAIN))
    assert report.loss is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "awq"}, "q: method: expected gptq, rtn or kmeans, got 'awq'"),
        (
            {"method": "kmeans", "ranges": "mse"},
            "q: ranges: expected full or weighted with kmeans, got 'mse'",
        ),
        ({"ranges": "wide"}, "q: ranges: expected full, mse, weighted or clip, got 'wide'"),
        ({"ranges": "clip"}, "q: ranges: expected full, mse or weighted with gptq, got 'clip'"),
        (PROPAGATED, "q: statistics: expected the original model's inputs too for this target"),
        ({"target": "other"}, "q: target: expected layerwise or propagated, got 'other'"),
        ({"target_strength": -0.1}, "q: target_strength: expected 0 to 1, got -0.1"),
        ({"full_range": True}, "q: full_range: expected False without symmetric"),
        (
            {"method": "rtn", "symmetric": True, "full_range": True, "ranges": "clip"},
            "q: full_range: expected False with the ranges clip",
        ),
        ({"method": "kmeans", "refit": True}, "q: refit: expected False with kmeans"),
        ({"method": "kmeans", "passes": 1}, "q: passes: expected 0 with kmeans"),
        ({"passes": -1}, "q: passes: expected 0 to 1000, got -1"),
        ({"ranges": "mse", "range_norm": 0}, "q: search.norm: expected a number above 0, got 0"),
        ({"group_size": 7}, "q: group_size: expected a divisor of K = 24, got 7"),
    ],
)
def test_errors_name_the_layer_and_the_argument(layer, settings, message):
    weight, statistics = layer
    with pytest.raises(ValueError, match=message):
        quantize_layer("q", weight, statistics, LayerSettings(**(PLAIN | settings)))


def test_a_loss_beyond_float32_is_said_and_is_no_number(caplog):
    statistics = InputStatistics(8)
    statistics.update(np.full((4, 8), 1e12, np.float32) * np.eye(8, dtype=np.float32)[:4].sum(0))
    weight = cases.random_matrix(1, (4, 8), np.float32, scale=1e12)
    settings = LayerSettings(method="rtn", bits=2, group_size=8, scale_dtype=np.float32)
    _, report = quantize_layer("block.q", weight, statistics, settings)
    assert report.loss is report.rtn_loss is None
    assert "block.q: its loss is beyond float32" in caplog.text


@pytest.mark.parametrize(
    ("given", "refits"),
    [
        ({}, False),
        ({"refit": None}, False),
        ({"refit": None, "target": "propagated"}, True),
        ({"refit": False, "target": "propagated"}, False),
        ({"refit": None, "target": "propagated", "find_grid": BlockFinder("Q4_K")}, False),
        ({"refit": None, "target": "propagated", "find_grid": BlockFinder("Q4_1")}, True),
        ({"refit": None, "target": "propagated", "element": "e2m1", "symmetric": True}, False),
        ({"refit": True}, True),
    ],
)
def test_scales_are_refitted_with_a_propagated_target_where_nothing_is_said(given, refits):
    assert LayerSettings(**given).refits is refits


def test_codes_are_chosen_anew_between_two_refits_by_the_hessian_that_gptq_had():
    weight, statistics = cases.random_matrix(20, (6, 24), np.float32), drifted()
    options = {"shrinkage": 0.2, "percdamp": 0.05}
    chosen = LayerSettings(**PLAIN, **PROPAGATED, **options, refit=True, passes=2)
    quantized, report = quantize_layer("q", weight, statistics, chosen)
    once = quantize_layer("q", weight, statistics, dataclasses.replace(chosen, passes=0))
    s = statistics
    damping = {"percdamp": options["percdamp"]}
    target = propagated_target(weight, s.hessian, s.cross, s.residual, strength=0.7, **options)
    diagonal = np.diag(np.diagonal(s.hessian))
    smooth = (0.8 * s.hessian + 0.2 * diagonal).astype(np.float32)
    wanted = once[0]
    for _ in range(2):
        wanted = descend_codes(target, wanted, smooth, **damping)
    assert_same(quantized, refit_scales(target, wanted, s.hessian, zeros="integers"))
    assert (quantized.codes != once[0].codes).any()
    assert report.loss < once[1].loss


@pytest.mark.parametrize(
    ("given", "passes"),
    [
        ({}, 0),
        ({"passes": None}, 0),
        ({"passes": None, "target": "propagated"}, 3),
        ({"passes": None, "target": "propagated", "find_grid": BlockFinder("Q4_K")}, 3),
        ({"passes": None, "target": "propagated", "element": "e2m1", "symmetric": True}, 0),
        ({"passes": 1}, 1),
    ],
)
def test_passes_over_codes_come_with_a_propagated_target_where_nothing_is_said(given, passes):
    assert LayerSettings(**given).descents == passes


@pytest.mark.parametrize(
    ("given", "spans"),
    [
        ({"symmetric": True}, False),
        ({"symmetric": True, "full_range": None}, True),
        ({"full_range": None}, False),
        ({"symmetric": True, "full_range": None, "method": "rtn"}, False),
        ({"symmetric": True, "full_range": None, "find_grid": BlockFinder("Q4_0")}, False),
        ({"symmetric": True, "full_range": None, "element": "e2m1"}, False),
        ({"symmetric": True, "full_range": True, "method": "rtn"}, True),
    ],
)
def test_a_symmetric_grid_has_its_full_range_with_gptq_where_nothing_is_said(given, spans):
    settings = LayerSettings(**given)
    settings.check()
    assert settings.spans_longer_side is spans
