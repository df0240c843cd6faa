"""Reading ``config.json``."""

from __future__ import annotations

from typing import Any

import pytest
from models.tiny import tiny_config

from numbacalib.models import ModelConfig


def test_both_generations_of_rope_keys_mean_the_same() -> None:
    scaling = {"rope_type": "linear", "factor": 2.0}
    old = tiny_config(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0})
    new = tiny_config(rope_parameters={"rope_theta": 5e5, **scaling})
    del new["rope_theta"]
    assert ModelConfig.from_hf(old) == ModelConfig.from_hf(new)
    assert ModelConfig.from_hf(new).rope_theta == 5e5
    assert ModelConfig.from_hf(new).rope_scaling == scaling


def test_what_a_file_leaves_out_is_the_architectures_default() -> None:
    config = tiny_config()
    for key in ("head_dim", "num_key_value_heads", "rms_norm_eps", "rope_theta"):
        del config[key]
    read = ModelConfig.from_hf(config)
    assert (read.head_dim, read.num_kv_heads, read.rms_norm_eps) == (16, 4, 1e-6)
    assert (read.rope_theta, read.rope_scaling) == (10000.0, {"rope_type": "default"})


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"model_type": "llama"}, (False, False, False, False)),
        ({"model_type": "llama", "attention_bias": True}, (True, True, False, False)),
        ({"model_type": "llama", "mlp_bias": True}, (False, False, True, False)),
        ({"model_type": "qwen2"}, (True, False, False, False)),
        ({"model_type": "qwen3"}, (False, False, False, True)),
    ],
)
def test_biases_and_norms_of_each_architecture(
    overrides: dict[str, Any], expected: tuple[bool, ...]
) -> None:
    read = ModelConfig.from_hf(tiny_config(**overrides))
    assert (read.attention_bias, read.output_bias, read.mlp_bias, read.qk_norm) == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"model_type": "llama", "sliding_window": 4}, (None, None)),
        ({"model_type": "mistral", "sliding_window": 4}, (4, 4)),
        ({"model_type": "qwen2", "sliding_window": 4}, (None, None)),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 4,
                "use_sliding_window": True,
                "max_window_layers": 1,
            },
            (None, 4),
        ),
        (
            {
                "model_type": "qwen3",
                "sliding_window": 4,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            (4, None),
        ),
    ],
)
def test_windows_of_each_layer(overrides: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert ModelConfig.from_hf(tiny_config(**overrides)).sliding_windows == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model_type": "gpt2"}, "model_type: expected one of llama, mistral, .* got 'gpt2'"),
        ({"model_type": None}, "model_type: expected one of llama, .* got None"),
        ({"hidden_size": None, "vocab_size": None}, "a llama needs hidden_size, vocab_size"),
        ({"hidden_act": "gelu"}, "hidden_act: expected 'silu', got 'gelu'"),
        (
            {"num_key_value_heads": 3},
            "num_key_value_heads: expected a divisor of num_attention_heads=4",
        ),
        ({"head_dim": 15}, "head_dim: expected an even number, got 15"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: expected a positive integer, got 0"),
        ({"hidden_size": [64]}, r"hidden_size: expected a positive integer, got \[64\]"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1, got 0.5"),
    ],
)
def test_what_is_not_supported_says_so(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf(tiny_config(**overrides))
