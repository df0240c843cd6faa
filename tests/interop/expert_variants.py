"""Decoders with experts, with latent attention or with gated delta nets."""

from __future__ import annotations

from typing import Any

from interop.rotary_variants import BY_KIND, FULL, SLIDING, YARN

QWEN_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
GLM_EXPERTS = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "routed_scaling_factor": 1.5,
}

LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
} | GLM_EXPERTS
MAGNITUDES = YARN | {"rope_theta": 1e4, "mscale": 1.2, "mscale_all_dim": 0.7}
FEW_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
DELTA = {
    "head_dim": 16,
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 8,
}
DELTA_EXPERTS = QWEN_EXPERTS | {"shared_expert_intermediate_size": 32}

INDEXED = LATENT | {"index_topk": 96, "index_head_dim": 16, "index_n_heads": 2}
"""Of an indexer that chooses more positions than texts have."""

CONVOLUTIONS = {
    "num_hidden_layers": 4,
    "layer_types": ["conv", FULL, "conv", FULL],
    "conv_L_cache": 3,
}

MAMBA = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", FULL, "linear_attention"],
    "mamba_n_heads": 8,
    "mamba_d_state": 16,
    "shared_intermediate_size": 48,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.2,
    "logits_scaling": 4.0,
}

NEMOTRON = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "moe", FULL, "mlp"],
    "head_dim": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "ssm_state_size": 16,
    "n_groups": 2,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 48,
    "routed_scaling_factor": 1.5,
}

LLAMA4 = {
    "head_dim": 16,
    "intermediate_size": 32,
    "intermediate_size_mlp": 96,
    "num_local_experts": 4,
    "floor_scale": 5,
    "attn_scale": 0.3,
}

SPARSE: dict[str, dict[str, Any]] = {
    "mixtral": {"head_dim": 16, "num_local_experts": 4},
    "mixtral-window": {"num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 7},
    "qwen2_moe": QWEN_EXPERTS | {"shared_expert_intermediate_size": 48},
    "qwen2_moe-sparse": QWEN_EXPERTS
    | {
        "num_hidden_layers": 5,
        "shared_expert_intermediate_size": 32,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
        "norm_topk_prob": True,
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 3,
    },
    "qwen3_moe": QWEN_EXPERTS | {"head_dim": 16, "norm_topk_prob": True},
    "qwen3_moe-window": QWEN_EXPERTS
    | {"use_sliding_window": True, "sliding_window": 7, "attention_bias": True},
    "granitemoe": {
        "num_local_experts": 4,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
        "logits_scaling": 4.0,
    },
    "glm4_moe": GLM_EXPERTS | {"head_dim": 16, "use_qk_norm": True},
    "glm4_moe-groups": GLM_EXPERTS
    | {"n_group": 4, "topk_group": 2, "n_shared_experts": 2, "attention_bias": True},
    "deepseek_v2": LATENT,
    "deepseek_v2-groups": LATENT
    | {
        "q_lora_rank": None,
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "rope_parameters": MAGNITUDES,
        "attention_bias": True,
    },
    "deepseek_v3": LATENT | {"n_group": 2, "topk_group": 1, "rope_parameters": MAGNITUDES},
    "deepseek_v3-direct": LATENT
    | {
        "q_lora_rank": None,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": False,
        "rms_norm_eps": 1e-2,
        "attention_bias": True,
    },
    "gpt_oss": {
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 7,
        "swiglu_limit": 1.0,
        "rope_parameters": YARN | {"rope_theta": 1e4, "truncate": False},
    },
    "gpt_oss-unbiased": {
        "head_dim": 24,
        "num_local_experts": 3,
        "num_experts_per_tok": 1,
        "sliding_window": 7,
        "swiglu_alpha": 1.0,
        "attention_bias": False,
        "layer_types": [FULL, SLIDING],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "llama4_text": LLAMA4 | {"num_hidden_layers": 4},
    "llama4_text-chunks": LLAMA4
    | {
        "no_rope_layers": [1, 0],
        "attention_chunk_size": 7,
        "num_experts_per_tok": 2,
        "interleave_moe_layer_step": 2,
        "use_qk_norm": False,
        "attention_bias": True,
    },
    "llama4_text-still": LLAMA4
    | {"attn_temperature_tuning": False, "attention_chunk_size": 13, "moe_layers": [0]},
    "qwen3_next": DELTA | DELTA_EXPERTS | {"mlp_only_layers": [0]},
    "qwen3_next-same-heads": DELTA
    | DELTA_EXPERTS
    | {
        "linear_num_key_heads": 4,
        "linear_conv_kernel_dim": 2,
        "norm_topk_prob": False,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e3,
            "partial_rotary_factor": 0.5,
        },
    },
    "qwen3_5_text": DELTA,
    "qwen3_5_moe_text": DELTA | DELTA_EXPERTS,
    "dots1": GLM_EXPERTS
    | {"n_shared_experts": 1, "first_k_dense_replace": 1, "sliding_window": 7}
    | {"max_window_layers": 1, "attention_bias": True},
    "solar_open": GLM_EXPERTS | {"head_dim": 16, "n_shared_experts": 1},
    "deepseek_v32": INDEXED | {"n_group": 2, "topk_group": 1, "rope_parameters": MAGNITUDES},
    "glm_moe_dsa": INDEXED | {"n_group": 1, "topk_group": 1, "index_topk_freq": 2},
    "sarvam_mla": LATENT | {"q_lora_rank": None, "n_group": 1, "topk_group": 1},
    "sarvam_moe": GLM_EXPERTS | {"head_dim": 16, "use_qk_norm": True},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2, "head_dim": 16, "attention_bias": True},
    "hy_v3": {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
    | {"head_dim": 16},
    "granitemoeshared": FEW_EXPERTS
    | {"shared_intermediate_size": 48, "embedding_multiplier": 3.0, "residual_multiplier": 0.5}
    | {"attention_multiplier": 0.2, "logits_scaling": 4.0},
    "granitemoehybrid": MAMBA | {"num_local_experts": 0, "position_embedding_type": "rope"},
    "granitemoehybrid-experts": MAMBA
    | FEW_EXPERTS
    | {"mamba_n_groups": 2, "mamba_conv_bias": False},
    "nemotron_h": NEMOTRON,
    "nemotron_h-latent": NEMOTRON | {"moe_latent_size": 32},
    "laguna": {"num_experts": 4, "num_experts_per_tok": 2}
    | {"head_dim": 16, "num_hidden_layers": 3, "layer_types": [FULL, SLIDING, FULL]}
    | {"num_attention_heads_per_layer": [4, 6, 4], "sliding_window": 7}
    | {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 48}
    | {"moe_routed_scaling_factor": 1.5},
    "mellum": FEW_EXPERTS
    | {"head_dim": 16, "moe_intermediate_size": 32, "sliding_window": 7}
    | {"layer_types": [FULL, SLIDING], "rope_parameters": BY_KIND},
    "lfm2_moe": CONVOLUTIONS
    | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    | {"num_dense_layers": 1},
    "olmoe": FEW_EXPERTS,
    "flex_olmo": FEW_EXPERTS | {"norm_topk_prob": True},
    "minimax_m2": FEW_EXPERTS | {"head_dim": 16, "rotary_dim": 8},
    "glm4_moe_lite": LATENT,
    "minicpm3": {name: size for name, size in LATENT.items() if name.endswith(("_rank", "_dim"))}
    | {"num_key_value_heads": 4, "dim_model_base": 16},
    "youtu": {"num_key_value_heads": 4}
    | {name: size for name, size in LATENT.items() if name.endswith(("_rank", "_dim"))},
    "afmoe": FEW_EXPERTS
    | {"head_dim": 16, "num_hidden_layers": 4, "sliding_window": 7, "moe_intermediate_size": 32}
    | {"route_scale": 1.5, "mup_enabled": True},
    "exaone_moe": FEW_EXPERTS
    | {"num_hidden_layers": 4, "sliding_window": 7, "moe_intermediate_size": 32}
    | {"n_group": 2, "topk_group": 1},
    "ernie4_5_moe": {"moe_num_experts": 8, "moe_k": 3, "moe_intermediate_size": 32},
}
