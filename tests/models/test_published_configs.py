"""Keys that published files have beside those of their transformers class, or do not have."""

from __future__ import annotations

from typing import Any

import pytest

from numbacalib.models import ModelConfig
from numbacalib.models.architectures import ARCHITECTURES

SIZES = {
    "hidden_size": 2048,
    "intermediate_size": 4096,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 50_000,
}
LINEAR, FULL, SLIDING = "linear_attention", "full_attention", "sliding_attention"
INNER = {
    "Gemma 3 4B": (
        "gemma3",
        {
            "model_type": "gemma3_text",
            "hidden_size": 2560,
            "intermediate_size": 10_240,
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        {"num_heads": 8, "num_kv_heads": 4, "head_dim": 256, "vocab_size": 262_208},
    ),
    "LLaVA 1.5 7B": (
        "llava",
        {
            "model_type": "llama",
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "vocab_size": 32_064,
        },
        {"num_layers": 32, "num_heads": 32, "hidden_size": 4096, "intermediate_size": 11_008},
    ),
    "LLaVA 1.6 Mistral": (
        "llava_next",
        {"model_type": "mistral", "intermediate_size": 14_336, "vocab_size": 32_064},
        {"num_layers": 32, "num_kv_heads": 8, "hidden_size": 4096},
    ),
    "Pixtral 12B": (
        "llava",
        {
            "model_type": "mistral",
            "head_dim": 128,
            "hidden_size": 5120,
            "intermediate_size": 14_336,
            "is_composition": True,
            "num_hidden_layers": 40,
            "num_key_value_heads": 8,
            "rope_theta": 1e9,
            "sliding_window": None,
            "vocab_size": 131_072,
        },
        {"num_heads": 32, "head_dim": 128, "sliding_windows": (None,) * 40},
    ),
    "SmolVLM": (
        "idefics3",
        SIZES
        | {
            "model_type": "llama",
            "neftune_noise_alpha": 0.0,
            "perceiver_config": {"model_type": "vllama3", "resampler_depth": 6},
            "pixel_shuffle_factor": 3,
            "qk_layer_norms": False,
            "use_resampler": False,
        },
        {"num_heads": 32},
    ),
}
"""Of models that see: their type, their ``text_config``, and what transformers makes of it."""


@pytest.mark.parametrize("name", INNER)
def test_sizes_that_a_text_config_leaves_out_are_the_class_s(name: str) -> None:
    kind, inner, expected = INNER[name]
    config = ModelConfig.from_hf({"model_type": kind, "text_config": inner, "vision_config": {}})
    assert {key: getattr(config, key) for key in expected} == expected


FIXED: dict[str, tuple[str, dict[str, Any], tuple[str, Any]]] = {
    "Qwen 3 Coder 480B": (
        "qwen3_moe",
        {"shared_expert_intermediate_size": 0, "use_qk_norm": True, "qkv_bias": False},
        ("shared_expert_intermediate_size", 512),
    ),
    "Phi 4 mini": (
        "phi3",
        {"full_attn_mod": 1, "interpolate_factor": 1, "partial_rotary_factor": 0.75},
        ("full_attn_mod", 2),
    ),
    "StarCoder 2": (
        "starcoder2",
        {
            "activation_function": "gelu",
            "attention_softmax_in_fp32": True,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_epsilon": 1e-5,
            "norm_epsilon": 1e-5,
            "scale_attention_softmax_in_fp32": True,
            "scale_attn_weights": True,
        },
        ("scale_attn_weights", False),
    ),
    "Command R7B": (
        "cohere2",
        {
            "layer_switch": 4,
            "rotary_pct": 1.0,
            "use_embedding_sharing": True,
            "use_gated_activation": True,
            "use_parallel_block": True,
            "use_parallel_embedding": True,
        },
        ("use_parallel_block", False),
    ),
    "dots.llm1": (
        "dots1",
        {"moe_layer_freq": 1, "scoring_func": "noaux_tc"},
        ("moe_layer_freq", 2),
    ),
    "GLM 5.2": (
        "glm_moe_dsa",
        {
            "index_share_for_mtp_iteration": True,
            "layer_types": ["deepseek_sparse_attention"] * 4,
            "moe_router_dtype": "float32",
            "num_key_value_heads": 32,
        },
        ("moe_router_dtype", "bfloat16"),
    ),
    "Qwen 3.6": ("qwen3_5_text", {"output_gate_type": "swish"}, ("output_gate_type", "sigmoid")),
    "ERNIE 4.5 21B": (
        "ernie4_5_moe",
        {"moe_capacity": [64, 64, 64], "moe_gate": "topk", "use_rmsnorm": True},
        ("moe_gate", "other"),
    ),
}
"""Keys that transformers does not read, and one of them with a value that would change the model."""


@pytest.mark.parametrize("name", FIXED)
def test_what_says_what_is_done_anyway_is_accepted(name: str) -> None:
    kind, given, (key, other) = FIXED[name]
    described = ARCHITECTURES[kind]
    config = {described.key(size): value for size, value in SIZES.items()} | given
    config["model_type"] = kind
    plain = {key: value for key, value in config.items() if key not in described.fixed}
    assert ModelConfig.from_hf(config) == ModelConfig.from_hf(plain)
    with pytest.raises(ValueError, match=f"{key}: expected .*, got") as error:
        ModelConfig.from_hf(config | {key: other})
    assert "\n" not in str(error.value)


HARMLESS = {
    "GPT-2 medium": ("gpt2", {"n_special": 0, "predict_special_tokens": True}),
    "EXAONE 3.5": ("exaone", {"embed_dropout": 0.0}),
    "Nemotron H 56B": (
        "nemotron_h",
        {
            "layer_types": ["linear_attention", "mlp", "full_attention", "mlp"],
            "layer_norm_epsilon": 1e-5,
            "rms_norm_eps": 1e-5,
            "time_step_limit": [0.0, 1e308],
            "time_step_rank": 512,
        },
    ),
    "Hunyuan 7B": ("hunyuan_v1_dense", {"enable_lm_head_fp32": True, "head_dim": 128}),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_keys_that_change_nothing_are_accepted(name: str) -> None:
    kind, given = HARMLESS[name]
    described = ARCHITECTURES[kind]
    config = {described.key(size): value for size, value in SIZES.items()} | given
    if kind == "gpt2":
        del config["num_key_value_heads"]
    assert ModelConfig.from_hf(config | {"model_type": kind}).num_layers == 4
