"""Decoders without experts of the years before 2024."""

from __future__ import annotations

from typing import Any

# Keys of sizes that the oldest have under other names.
ELSEWHERE = {"intermediate_size": None, "num_key_value_heads": None}
FALCON = ELSEWHERE | {"ffn_hidden_size": 96}

OLDER: dict[str, dict[str, Any]] = {
    "starcoder2": {"sliding_window": 9},
    "phi": {"num_key_value_heads": 4},
    "nemotron": {"attention_bias": True, "mlp_bias": True},
    "stablelm": {"use_qkv_bias": True},
    "gpt2": ELSEWHERE | {"n_inner": 96},
    "gpt_bigcode": ELSEWHERE | {"n_inner": 96},
    "gpt_neo": {
        "num_key_value_heads": None,
        "window_size": 7,
        "attention_types": [[["global", "local"], 1]],
        "num_layers": 2,
    },
    "gptj": ELSEWHERE | {"n_inner": 96, "rotary_dim": 8},
    "opt": ELSEWHERE | {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "opt-unbiased": ELSEWHERE | {"ffn_dim": 96, "word_embed_proj_dim": 64, "enable_bias": False},
    "gpt_neox": {"num_key_value_heads": None},
    "gpt_neox-sequential": {
        "num_key_value_heads": None,
        "use_parallel_residual": False,
        "attention_bias": False,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e3,
            "partial_rotary_factor": 0.5,
        },
    },
    "falcon": FALCON,
    "falcon-two-norms": FALCON
    | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    "falcon-one-norm": FALCON
    | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    "falcon-sequential": FALCON | {"parallel_attn": False, "multi_query": False, "bias": True},
}
