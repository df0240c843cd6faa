"""Configurations, and what GGUF files that llama.cpp makes of them have beside the keys of all."""

from __future__ import annotations

import numpy as np
from models.converted_gguf import Case
from models.tiny import VOCAB_SIZE

SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
KEPT = {"num_experts": 3, "num_experts_per_tok": 2}
EXPERTS = KEPT | {"moe_intermediate_size": 32}
COUNTS = {"expert_count": 3, "expert_used_count": 2}
FULL, SLIDING = "full_attention", "sliding_attention"
FACTORS = [1.0 + i / 4 for i in range(6)], [2.0 + i for i in range(6)]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
YARN_KEYS = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 16,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
    "n_routed_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
LATENT_KEYS = {
    "attention.kv_lora_rank": 24,
    "expert_feed_forward_length": 32,
    "expert_shared_count": 1,
    "leading_dense_block_count": 1,
    "rope.dimension_count": 4,
}
PARTS = {
    "attention.head_count_kv": 1,
    "attention.key_length": 28,
    "attention.value_length": 24,
    "attention.key_length_mla": 12,
    "attention.value_length_mla": 10,
}
"""Of files whose matrix of keys and values is stored in two parts."""
SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
SECTION_KEYS = {"rope.dimension_sections": [2, 3, 3, 0]}


BEHIND_A_DENSE_ONE = COUNTS | {
    "expert_feed_forward_length": 32,
    "expert_shared_count": 1,
    "expert_gating_func": 2,
    "leading_dense_block_count": 1,
    "expert_weights_norm": True,
    "expert_weights_scale": 1.5,
}
CASES = {
    "afmoe": Case(
        EXPERTS | {
            "model_type": "afmoe",
            "num_dense_layers": 1,
            "num_shared_experts": 1,
            "mup_enabled": True,
            "sliding_window": 5,
            "route_scale": 1.5,
        },
        BEHIND_A_DENSE_ONE | {"attention.sliding_window": 5},
    ),
    "arcee": Case({"model_type": "arcee", "mlp_bias": True}),
    "chatglm": Case({"model_type": "glm"}, {"rope.dimension_count": 8}),
    "command-r": Case({"model_type": "cohere", "logit_scale": 0.5}, {"logit_scale": 0.5}),
    "cohere2": Case(
        {"model_type": "cohere2", "logit_scale": 0.25, "sliding_window": 5},
        {"logit_scale": 0.25, "attention.sliding_window": 5},
    ),
    "deepseek2": Case(
        LATENT | {
            "model_type": "deepseek_v3",
            "q_lora_rank": 16,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 2.5,
            "rope_scaling": YARN | {"mscale": 0.5, "mscale_all_dim": 0.5},
        },
        COUNTS | LATENT_KEYS | PARTS | YARN_KEYS | {
            "attention.q_lora_rank": 16,
            "expert_gating_func": 2,
            "expert_weights_norm": True,
            "expert_weights_scale": 2.5,
            "expert_group_count": 1,
            "expert_group_used_count": 1,
            "rope.scaling.yarn_log_multiplier": 0.05,
        },
    ),
    "deepseek2-whole": Case(
        LATENT | {"model_type": "deepseek_v2", "q_lora_rank": None},
        COUNTS | LATENT_KEYS | {"attention.key_length": 12, "attention.value_length": 10},
    ),
    "deepseek2-dense": Case(
        {name: size for name, size in LATENT.items() if name.endswith(("_rank", "_dim", "_heads"))}
        | {"model_type": "youtu", "q_lora_rank": 16},
        LATENT_KEYS | PARTS | {
            "attention.q_lora_rank": 16,
            "expert_feed_forward_length": 96,
            "expert_shared_count": 0,
            "leading_dense_block_count": 4,
        },
    ),
    "dots1": Case(
        EXPERTS | {
            "model_type": "dots1",
            "num_key_value_heads": 4,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.5,
        },
        BEHIND_A_DENSE_ONE,
    ),
    "ernie4_5": Case({"model_type": "ernie4_5", "use_bias": True}),
    "ernie4_5-moe": Case(
        {
            "model_type": "ernie4_5_moe",
            "moe_num_experts": 3,
            "moe_k": 2,
            "moe_intermediate_size": 32,
            "moe_num_shared_experts": 1,
        },
        COUNTS | {
            "expert_feed_forward_length": 32,
            "expert_shared_count": 1,
            "expert_shared_feed_forward_length": 32,
            "interleave_moe_layer_step": 1,
            "leading_dense_block_count": 1,
        },
    ),
    "exaone": Case({"model_type": "exaone"}),
    "exaone4": Case({"model_type": "exaone4", "sliding_window": None}),
    "exaone-moe": Case(
        EXPERTS | {
            "model_type": "exaone_moe",
            "sliding_window": 5,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 1.5,
        },
        BEHIND_A_DENSE_ONE | {
            "attention.sliding_window": 5,
            "attention.sliding_window_pattern": [True, True, True, False],
            "expert_shared_feed_forward_length": 32,
        },
    ),
    "falcon": Case({"model_type": "falcon", "bias": False}),
    "falcon-two-norms": Case({"model_type": "falcon", "new_decoder_architecture": True}),
    "gemma": Case({"model_type": "gemma"}),
    "gemma2": Case(
        {"model_type": "gemma2", "query_pre_attn_scalar": 16, "sliding_window": 5},
        {
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "attention.sliding_window": 5,
        },
    ),
    "gemma3": Case(
        {
            "model_type": "gemma3_text",
            "query_pre_attn_scalar": 16,
            "sliding_window": 5,
            "layer_types": [SLIDING, FULL, SLIDING, FULL],
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        {
            "attention.sliding_window": 5,
            "attention.sliding_window_pattern": [True, False, True, False],
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
    ),
    "glm4": Case({"model_type": "glm4"}, {"rope.dimension_count": 8}),
    "glm4-sections": Case(
        {"model_type": "glm4v_text", "rope_parameters": SECTIONS},
        SECTION_KEYS | {"rope.dimension_count": 8},
    ),
    "glm4moe": Case(
        EXPERTS | {
            "model_type": "glm4_moe",
            "use_qk_norm": True,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 1.5,
        },
        BEHIND_A_DENSE_ONE | {"rope.dimension_count": 8},
    ),
    "gpt-oss": Case(
        {
            "model_type": "gpt_oss",
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "sliding_window": 5,
            "rope_scaling": YARN,
        },
        COUNTS | YARN_KEYS | {"attention.sliding_window": 5, "expert_feed_forward_length": 96},
    ),
    "gpt2": Case({"model_type": "gpt2", "num_key_value_heads": 4}),
    "gptneox": Case(
        {"model_type": "gpt_neox", "num_key_value_heads": 4, "use_parallel_residual": False},
        {"rope.dimension_count": 4, "use_parallel_residual": False},
    ),
    "granite": Case(
        {
            "model_type": "granite",
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
            "logits_scaling": 4.0,
        },
        {"embedding_scale": 3.0, "residual_scale": 0.5, "attention.scale": 0.2, "logit_scale": 4.0},
    ),
    "granitemoe": Case(
        KEPT | {"model_type": "granitemoe", "attention_multiplier": 0.2},
        COUNTS | {"embedding_scale": 1.0, "residual_scale": 1.0, "attention.scale": 0.2},
    ),
    "granitemoe-shared": Case(
        KEPT | {
            "model_type": "granitemoeshared",
            "attention_multiplier": 0.2,
            "shared_intermediate_size": 48,
        },
        COUNTS | {"attention.scale": 0.2, "expert_shared_feed_forward_length": 48},
    ),
    "hunyuan-moe": Case(
        {"model_type": "hunyuan_v1_moe", "num_experts": 3, "moe_topk": 2},
        COUNTS | {
            "expert_feed_forward_length": 96,
            "expert_shared_count": 1,
            "expert_shared_feed_forward_length": 96,
        },
    ),
    "jais2": Case({"model_type": "jais2", "num_key_value_heads": 4}),
    "llama-experts": Case(KEPT | {"model_type": "mixtral"}, COUNTS),
    "hunyuan-dense": Case({"model_type": "hunyuan_v1_dense"}),
    "llama4": Case(
        {
            "model_type": "llama4_text",
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "intermediate_size": 32,
            "interleave_moe_layer_step": 2,
        },
        COUNTS | {"expert_feed_forward_length": 32, "interleave_moe_layer_step": 2},
    ),
    "minimax-m2": Case(
        KEPT | {"model_type": "minimax_m2", "rotary_dim": 8},
        COUNTS | {
            "rope.dimension_count": 8,
            "expert_feed_forward_length": 96,
            "expert_gating_func": 2,
        },
    ),
    "mistral3": Case(
        {
            "model_type": "ministral3",
            "rope_parameters": YARN | {
                "mscale": 1.0,
                "mscale_all_dim": 0.5,
                "llama_4_scaling_beta": 0.25,
                "rope_theta": 10000.0,
            },
        },
        YARN_KEYS | {
            "attention.temperature_scale": 0.25,
            "rope.scaling.yarn_log_multiplier": 0.5,
        },
    ),
    "nemotron": Case({"model_type": "nemotron"}, {"rope.dimension_count": 8}),
    "olmo2": Case({"model_type": "olmo2"}),
    "olmo2-windows": Case(
        {
            "model_type": "olmo3",
            "sliding_window": 5,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": {
                "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
            },
        },
        {
            "attention.sliding_window": 5,
            "attention.sliding_window_pattern": [True, True, True, False],
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 16,
        },
    ),
    "olmoe": Case(KEPT | {"model_type": "olmoe", "num_key_value_heads": 4}, COUNTS),
    "phi2": Case({"model_type": "phi"}, {"rope.dimension_count": 8}),
    "phi3": Case(
        {"model_type": "phi3", "sliding_window": 5},
        {"attention.sliding_window": 5, "rope.scaling.original_context_length": 4096},
    ),
    "phi3-longrope": Case(
        {
            "model_type": "phi3",
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 32,
            "rope_scaling": {
                "rope_type": "longrope",
                "short_factor": FACTORS[0],
                "long_factor": FACTORS[1],
                "attention_factor": 1.1875,
            },
        },
        {
            "rope.dimension_count": 12,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.attn_factor": 1.1875,
        },
        {
            "rope_factors_short.weight": np.array(FACTORS[0], np.float32),
            "rope_factors_long.weight": np.array(FACTORS[1], np.float32),
        },
    ),
    "qwen2moe": Case(
        EXPERTS | {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 48},
        COUNTS | {"expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 48},
    ),
    "qwen2vl": Case({"model_type": "qwen2_vl_text", "rope_parameters": SECTIONS}, SECTION_KEYS),
    "qwen3vl": Case(
        {"model_type": "qwen3_vl_text", "rope_parameters": SECTIONS},
        SECTION_KEYS | {"n_deepstack_layers": 3},
    ),
    "qwen3vlmoe": Case(
        EXPERTS | {"model_type": "qwen3_vl_moe_text", "rope_parameters": SECTIONS},
        COUNTS | SECTION_KEYS | {"expert_feed_forward_length": 32, "n_deepstack_layers": 3},
    ),
    "qwen3moe": Case(
        EXPERTS | {"model_type": "qwen3_moe", "norm_topk_prob": True},
        COUNTS | {"expert_feed_forward_length": 32},
    ),
    "seed_oss": Case({"model_type": "seed_oss"}),
    "smollm3": Case({"model_type": "smollm3"}),
    "stablelm": Case({"model_type": "stablelm"}, {"rope.dimension_count": 4}),
    "starcoder": Case({"model_type": "gpt_bigcode"}),
    "starcoder2": Case({"model_type": "starcoder2"}),
}  # fmt: skip
"""By ``general.architecture``, with something after a hyphen for further variants."""
