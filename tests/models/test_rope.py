"""Rotary frequencies: the properties that define each scaling variant."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from models.tiny import tiny_config

from numbacalib.models import ModelConfig
from numbacalib.models.rope import RotaryEmbedding, inverse_frequencies
from numbacalib.ops.rotary import rotate

PLAIN = 10000.0 ** (-np.arange(0, 16, 2) / 16)


def frequencies(length: int = 32, **scaling: Any) -> tuple[Any, float]:
    return inverse_frequencies(ModelConfig.from_hf(tiny_config(rope_scaling=scaling)).rope, length)


def test_default_frequencies_fall_geometrically() -> None:
    actual, attention = inverse_frequencies(ModelConfig.from_hf(tiny_config()).rope, 32)
    np.testing.assert_allclose(actual, PLAIN)
    assert attention == 1


def test_linear_divides_every_frequency() -> None:
    np.testing.assert_allclose(frequencies(rope_type="linear", factor=4.0)[0], PLAIN / 4)


def test_dynamic_starts_beyond_the_trained_length() -> None:
    """At the slowest pair, the interpolation is by ``factor * length / trained - factor + 1``."""
    short, _ = frequencies(128, rope_type="dynamic", factor=2.0)
    np.testing.assert_allclose(short, PLAIN)
    long, _ = frequencies(256, rope_type="dynamic", factor=2.0)
    assert long[0] == 1
    assert long[-1] == pytest.approx(PLAIN[-1] / 3)


def test_llama3_with_one_bound_has_a_step() -> None:
    """As the files of Llama 4 have it."""
    bounds = {"low_freq_factor": 1.0, "high_freq_factor": 1.0}
    actual, _ = frequencies(
        rope_type="llama3", factor=8.0, original_max_position_embeddings=64, **bounds
    )
    turns = 64 * PLAIN / (2 * math.pi)
    assert (turns > 1).any()
    np.testing.assert_allclose(actual, np.where(turns > 1, PLAIN, PLAIN / 8))


def test_llama3_keeps_fast_pairs_and_interpolates_slow_ones() -> None:
    original = 64
    actual, _ = frequencies(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=original,
    )
    turns = original * PLAIN / (2 * math.pi)
    between = (turns > 1) & (turns < 4)
    assert all(part.any() for part in (turns > 4, turns < 1, between))
    np.testing.assert_allclose(actual[turns > 4], PLAIN[turns > 4])
    np.testing.assert_allclose(actual[turns < 1], PLAIN[turns < 1] / 8)
    share = (turns[between] - 1) / 3
    np.testing.assert_allclose(actual[between], PLAIN[between] * (share + (1 - share) / 8))


def test_yarn_ends_are_kept_and_interpolated() -> None:
    given = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    actual, attention = frequencies(**given)
    assert actual[0] == PLAIN[0]
    assert actual[-1] == pytest.approx(PLAIN[-1] / 4)
    assert (np.diff(actual) < 0).all()
    assert attention == pytest.approx(0.1 * math.log(4) + 1)
    assert frequencies(**given, attention_factor=0.5)[1] == 0.5
    assert frequencies(**given, mscale=2.0, mscale_all_dim=1.0)[1] == pytest.approx(
        (0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1)
    )


def test_longrope_changes_factors_beyond_the_original_length() -> None:
    short, long = np.linspace(1, 2, 8), np.linspace(2, 9, 8)
    given = {
        "type": "longrope",
        "short_factor": short.tolist(),
        "long_factor": long.tolist(),
        "original_max_position_embeddings": 32,
    }
    actual, attention = frequencies(32, **given)
    np.testing.assert_allclose(actual, PLAIN / short)
    np.testing.assert_allclose(frequencies(33, **given)[0], PLAIN / long)
    assert attention == pytest.approx(math.sqrt(1 + math.log(4) / math.log(32)))


def test_scores_depend_on_the_distance_only() -> None:
    rope = RotaryEmbedding(ModelConfig.from_hf(tiny_config()).rope)
    heads = np.tile(np.random.default_rng(0).standard_normal((2, 16)), (1, 40, 1, 1))
    heads = heads.astype(np.float32)
    rotate(heads, *rope.tables(40))
    query, key = heads[0, :, 0], heads[0, :, 1]
    scores = query @ key.T
    for distance in range(5):
        diagonal = np.diagonal(scores, -distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "mrope"}, "rope_type: expected one of default, linear, .*got 'mrope'"),
        ({"rope_type": "linear"}, "rope_scaling.factor: expected a number from 1 to 1e.06, found"),
        ({"rope_type": "longrope", "short_factor": [1.0]}, "short_factor: expected 8 numbers"),
    ],
)
def test_what_is_not_supported_says_so(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RotaryEmbedding(ModelConfig.from_hf(tiny_config(rope_scaling=scaling)).rope)
