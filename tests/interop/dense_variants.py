"""Decoders without experts: what each says beside the sizes of all."""

from __future__ import annotations

from typing import Any

from interop.rotary_variants import BY_KIND, FULL, LONGROPE, SLIDING, YARN

GEMMA4 = {
    "head_dim": 16,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 0,
    "sliding_window": 7,
    "num_hidden_layers": 3,
    "layer_types": [SLIDING, FULL, SLIDING],
}

GEMMA4_SMALL = GEMMA4 | {
    "num_hidden_layers": 6,
    "layer_types": [SLIDING, FULL, SLIDING, SLIDING, FULL, FULL],
    "num_kv_shared_layers": 3,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 320,
    "use_double_wide_mlp": True,
}
"""As E2B and E4B are: vectors of tokens in each block, and keys of earlier blocks."""

DENSE: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 7},
    "exaone": {},
    "hyperclovax": {
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 0.25,
    },
    "jais2": {},
    "lfm3": {
        "num_hidden_layers": 4,
        "layer_types": ["conv", SLIDING, FULL, "conv"],
        "head_dim": 16,
        "sliding_window": 7,
        "conv_L_cache": 5,
    },
    "lfm2": {
        "num_hidden_layers": 3,
        "layer_types": ["conv", FULL, "conv"],
        "block_multiple_of": 16,
        "block_ffn_dim_multiplier": 1.5,
    },
    "iquestcoder": {"head_dim": 16},
    "qwen2": {},
    "qwen3": {"head_dim": 24},
    "gemma": {"head_dim": 24, "num_key_value_heads": 1},
    "gemma2": {"head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 10},
    "gemma2-uncapped": {
        "head_dim": 16,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "layer_types": [FULL, SLIDING],
        "sliding_window": 5,
    },
    "gemma3_text": {
        "head_dim": 24,
        "sliding_window": 7,
        "num_hidden_layers": 3,
        "layer_types": [SLIDING, FULL, SLIDING],
    },
    "gemma3_text-scaled": {
        "head_dim": 16,
        "sliding_window": 7,
        "rope_parameters": BY_KIND,
        "layer_types": [SLIDING, FULL],
        "final_logit_softcapping": 5.0,
    },
    "gemma4_text": GEMMA4 | {"num_global_key_value_heads": 1, "attention_k_eq_v": True},
    "gemma4_text-small": GEMMA4_SMALL,
    "gemma4_text-own-keys": GEMMA4
    | {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 320},
    "gemma4_text-experts": GEMMA4
    | {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2}
    | {"moe_intermediate_size": 32, "attention_k_eq_v": True},
    "gemma4_unified_text": {name: GEMMA4[name] for name in GEMMA4 if "per_layer" not in name},
    "gemma4_text-values": GEMMA4
    | {"num_hidden_layers": 4, "layer_types": [SLIDING, FULL, SLIDING, FULL]}
    | {"final_logit_softcapping": 5.0},
    "phi3": {"sliding_window": 9},
    "phi3-longrope": {"rope_parameters": LONGROPE | {"partial_rotary_factor": 0.75}},
    "ministral": {"head_dim": 16, "sliding_window": 7, "layer_types": [FULL, SLIDING]},
    "ministral3": {
        "head_dim": 16,
        "rope_parameters": YARN | {"rope_theta": 1e4, "llama_4_scaling_beta": 0.5},
    },
    "smollm3": {"num_hidden_layers": 4},
    "smollm3-windows": {
        "no_rope_layers": [0, 1],
        "use_sliding_window": True,
        "sliding_window": 7,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "olmo2": {"attention_bias": True},
    "olmo3": {"num_hidden_layers": 4, "sliding_window": 7, "rope_parameters": BY_KIND},
    "granite": {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
        "logits_scaling": 4.0,
    },
    "cohere": {"use_qk_norm": True},
    "cohere-biased": {"attention_bias": True, "logit_scale": 0.5},
    "cohere2": {"num_hidden_layers": 4, "sliding_window": 7},
    "glm": {"head_dim": 16},
    "glm4": {"head_dim": 16, "attention_bias": False},
    "arcee": {"mlp_bias": True},
    "seed_oss": {"head_dim": 16, "attention_out_bias": True},
    "ernie4_5": {"head_dim": 16, "use_bias": True},
    "exaone4": {"num_hidden_layers": 4, "sliding_window": 7},
    "exaone4-full": {"sliding_window": None, "layer_types": [FULL, FULL]},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_dense-alpha": {
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "dynamic",
            "rope_theta": 1e4,
            "alpha": 50.0,
            "factor": 1.0,
        },
    },
    "helium": {"head_dim": 16},
    "internlm3": {"head_dim": 16, "qkv_bias": True, "bias": True},
    "vaultgemma": {"head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 10},
    "cwm": {
        "head_dim": 16,
        "sliding_window": 7,
        "rope_parameters": YARN | {"rope_theta": 1e4},
    },
}
