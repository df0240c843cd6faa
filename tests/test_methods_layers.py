"""Layers of one input together, and layers solved again from what is on disk."""

import dataclasses

import cases
import numpy as np
import pytest
from test_methods_layer import PLAIN, PROPAGATED, assert_same, collected, drifted

from numbacalib.methods import (
    LayerSettings,
    codebook,
    quantize_layer,
    quantize_layers,
    solve,
    solver,
)
from numbacalib.statistics import (
    InputStatistics,
    load_statistics,
    load_weights,
    save_statistics,
)


def test_layers_are_solved_again_from_disk(tmp_path):
    shared, other = collected(1), collected(3, channels=16)
    statistics = {"q": shared, "k": shared, "down": other}
    weights = {
        name: cases.random_matrix(i, (4, len(s.hessian)), dtype)
        for i, ((name, s), dtype) in enumerate(
            zip(statistics.items(), (np.float16, np.float32, cases.DTYPES[1]), strict=True)
        )
    }
    file = tmp_path / "calibration.safetensors"
    save_statistics(file, statistics, weights)
    for settings in (
        LayerSettings(bits=4, group_size=8),
        LayerSettings(bits=2, group_size=None, act_order="group_aware", ranges="weighted"),
        LayerSettings(method="rtn", bits=3, group_size=4, ranges="clip"),
    ):
        solved = list(solve(load_weights(file), load_statistics(file), settings))
        assert [report.name for _, report in solved] == ["q", "k", "down"]
        for quantized, report in solved:
            name = report.name
            expected, _ = quantize_layer(name, weights[name], statistics[name], settings)
            assert_same(quantized, expected)
    settings = LayerSettings(method="kmeans", bits=2, ranges="weighted")
    fisher = {name: np.abs(weight.astype(np.float32)) for name, weight in weights.items()}
    for quantized, report in solve(load_weights(file), load_statistics(file), settings, fisher):
        expected = codebook(weights[report.name], bits=2, importance=fisher[report.name])
        np.testing.assert_array_equal(quantized.codes, expected.codes)


def test_layers_with_the_original_inputs_are_solved_again_from_disk(tmp_path):
    weight, statistics = cases.random_matrix(20, (6, 24), np.float32), drifted()
    file = tmp_path / "calibration.safetensors"
    save_statistics(file, {"q": statistics}, {"q": weight})
    settings = LayerSettings(**PLAIN, **PROPAGATED, refit=True)
    ((quantized, _),) = solve(load_weights(file), load_statistics(file), settings)
    assert_same(quantized, quantize_layer("q", weight, statistics, settings)[0])


@pytest.mark.parametrize("better", [{}, {"refit": True, "passes": 2}])
@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_layers_of_one_input_come_out_as_one_by_one(backend, monkeypatch, method, better):
    """Rows do not depend on each other; the Hessian that they share is factored once."""
    weights = {
        f"block.{name}": backend.array(cases.random_matrix(seed, (rows, 32), np.float32))
        for seed, (name, rows) in enumerate([("q", 24), ("k", 8), ("v", 8)])
    }
    statistics = InputStatistics(32)
    statistics.update(backend.array(cases.random_matrix(7, (64, 32), np.float32)))
    settings = LayerSettings(method=method, bits=3, group_size=16, ranges="weighted", **better)
    factored = []
    factor = solver.factor_hessians
    monkeypatch.setattr(
        solver, "factor_hessians", lambda *a, **b: factored.append(1) or factor(*a, **b)
    )
    together = quantize_layers(weights, statistics, settings)
    assert len(factored) == (method == "gptq")
    for (name, weight), (quantized, report) in zip(weights.items(), together, strict=True):
        alone, other = quantize_layer(name, weight, statistics, settings)
        assert quantized == alone
        assert dataclasses.replace(report, seconds=0) == dataclasses.replace(other, seconds=0)


def test_an_error_of_layers_names_the_one_that_it_is_about():
    weights = {"q": np.ones((4, 8), np.float32), "k": np.full((4, 8), np.nan, np.float32)}
    statistics = InputStatistics(8)
    statistics.update(cases.random_matrix(1, (32, 8), np.float32))
    for method in ("gptq", "rtn"):
        settings = LayerSettings(method=method, bits=4, group_size=8)
        with pytest.raises(
            ValueError, match=r"^k: weight: expected finite values, got nan at \[0, 0\]"
        ):
            quantize_layers(weights, statistics, settings)
