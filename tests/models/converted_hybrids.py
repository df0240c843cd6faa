"""Cases as `models.converted_cases` has them, of decoders whose layers are of two kinds."""

from __future__ import annotations

import numpy as np
from models.converted_cases import COUNTS, EXPERTS, FULL, SECTIONS, SLIDING
from models.converted_gguf import Case
from models.tiny import VOCAB_SIZE

LINEAR = "linear_attention"
DELTA = {
    "layer_types": [LINEAR, LINEAR, LINEAR, FULL],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 3,
}
DELTA_KEYS = {
    "full_attention_interval": 4,
    "ssm.conv_kernel": 3,
    "ssm.group_count": 2,
    "ssm.inner_size": 32,
    "ssm.state_size": 8,
    "ssm.time_step_rank": 4,
    "rope.dimension_count": 8,
}
MROPE = SECTIONS | {"mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}
MROPE_KEYS = {"rope.dimension_sections": [1, 1, 2, 0]}
SHARED = EXPERTS | {"shared_expert_intermediate_size": 48}
SHARED_KEYS = COUNTS | {
    "expert_feed_forward_length": 32,
    "expert_shared_feed_forward_length": 48,
}
GEMMA4 = {
    "model_type": "gemma4_text",
    "global_head_dim": 32,
    "sliding_window": 5,
    "layer_types": [SLIDING, FULL, SLIDING, FULL],
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "rope_parameters": {
        FULL: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        SLIDING: {"rope_type": "default", "rope_theta": 1e4},
    },
}
GEMMA4_KEYS = {
    "attention.key_length": 32,
    "attention.value_length": 32,
    "attention.key_length_swa": 16,
    "attention.value_length_swa": 16,
    "attention.sliding_window": 5,
    "attention.sliding_window_pattern": [True, False, True, False],
    "rope.dimension_count": 32,
    "rope.dimension_count_swa": 16,
    "rope.freq_base": 1e6,
    "rope.freq_base_swa": 1e4,
}
GEMMA4_ROPE = {"rope_freqs.weight": np.array([1.0] * 4 + [1e30] * 12, np.float32)}
MAMBA = {
    "layer_types": ["mamba", "mamba", "attention", "mamba"],
    "mamba_n_heads": 4,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_d_conv": 3,
    "shared_intermediate_size": 96,
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
}
MAMBA_KEYS = {
    "attention.head_count_kv": [0, 0, 2, 0],
    "ssm.conv_kernel": 3,
    "ssm.group_count": 2,
    "ssm.inner_size": 128,
    "ssm.state_size": 8,
    "ssm.time_step_rank": 4,
}
GRANITE_KEYS = MAMBA_KEYS | {
    "attention.scale": 0.2,
    "embedding_scale": 3.0,
    "expert_shared_feed_forward_length": 96,
}
NEMOTRON = {
    "model_type": "nemotron_h",
    "mamba_num_heads": 4,
    "mamba_head_dim": 32,
    "n_groups": 2,
    "ssm_state_size": 8,
    "conv_kernel": 3,
    "n_routed_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 64,
    "routed_scaling_factor": 1.5,
}
NEMOTRON_EXPERTS = NEMOTRON | {
    "layer_types": ["mamba", "moe", "attention", "moe"],
    "intermediate_size": 32,  # used by no block
}
NEMOTRON_KEYS = (
    COUNTS
    | MAMBA_KEYS
    | {
        "expert_feed_forward_length": 32,
        "expert_shared_count": 1,
        "expert_shared_feed_forward_length": 64,
        "expert_weights_norm": True,
        "expert_weights_scale": 1.5,
        "expert_group_count": 1,
        "feed_forward_length": [0, 32, 0, 32],
    }
)
CONVOLUTIONS = {"layer_types": ["conv", FULL, "conv", FULL], "conv_L_cache": 4}
CONVOLUTION_KEYS = {"attention.head_count_kv": [0, 2, 0, 2], "shortconv.l_cache": 4}
HYBRIDS = {
    "gemma4": Case(
        GEMMA4 | {
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "final_logit_softcapping": 20.0,
        },
        GEMMA4_KEYS | {
            "attention.shared_kv_layers": 2,
            "embedding_length_per_layer_input": 8,
            "feed_forward_length": [96, 96, 192, 192],
            "final_logit_softcapping": 20.0,
        },
        GEMMA4_ROPE,
    ),
    "gemma4-experts": Case(
        GEMMA4 | {
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "enable_moe_block": True,
            "num_experts": 3,
            "top_k_experts": 2,
            "moe_intermediate_size": 32,
        },
        GEMMA4_KEYS | COUNTS | {
            "attention.head_count_kv": [2, 1, 2, 1],
            "attention.shared_kv_layers": 0,
            "embedding_length_per_layer_input": 0,
            "expert_feed_forward_length": 32,
        },
        GEMMA4_ROPE,
    ),
    "granite-fourth": Case(
        MAMBA
        | {
            "model_type": "granitemoehybrid",
            "layer_types": ["attention"] * 4,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "position_embedding_type": "rope",
        },
        GRANITE_KEYS | {"attention.head_count_kv": [2] * 4, "rope.scaling.finetuned": True},
    ),
    "granitehybrid": Case(
        MAMBA | {
            "model_type": "granitemoehybrid",
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "position_embedding_type": "rope",
        },
        GRANITE_KEYS,
    ),
    "granitehybrid-experts": Case(
        MAMBA | {
            "model_type": "granitemoehybrid",
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 48,
        },
        GRANITE_KEYS | COUNTS | {
            "expert_shared_feed_forward_length": 48,
            "rope.scaling.finetuned": False,
        },
    ),
    "lfm2": Case(
        CONVOLUTIONS | {"model_type": "lfm2", "block_auto_adjust_ff_dim": False}, CONVOLUTION_KEYS
    ),
    "lfm2moe": Case(
        CONVOLUTIONS | EXPERTS | {"model_type": "lfm2_moe", "num_dense_layers": 1},
        CONVOLUTION_KEYS | COUNTS | {
            "expert_feed_forward_length": 32,
            "expert_gating_func": 2,
            "leading_dense_block_count": 1,
        },
    ),
    "nemotron_h": Case(
        NEMOTRON | {"layer_types": ["mamba", "mlp", "attention", "mamba"], "mlp_bias": True},
        MAMBA_KEYS | {"feed_forward_length": [0, 96, 0, 0], "rope.dimension_count": 20},
    ),
    "nemotron_h_moe": Case(
        NEMOTRON_EXPERTS | {"attention_bias": True},
        NEMOTRON_KEYS,
    ),
    "nemotron_h_moe-latent": Case(
        NEMOTRON_EXPERTS | {"moe_latent_size": 24},
        NEMOTRON_KEYS | {"moe_latent_size": 24},
    ),
    "qwen35": Case(
        DELTA | {"model_type": "qwen3_5_text", "rope_parameters": MROPE}, DELTA_KEYS | MROPE_KEYS
    ),
    "qwen35moe": Case(
        DELTA | SHARED | {"model_type": "qwen3_5_moe_text", "rope_parameters": MROPE},
        DELTA_KEYS | MROPE_KEYS | SHARED_KEYS,
    ),
    "qwen3next": Case(
        DELTA | SHARED | {"model_type": "qwen3_next", "partial_rotary_factor": 0.5},
        DELTA_KEYS | SHARED_KEYS,
    ),
}  # fmt: skip
"""By ``general.architecture``, with something after a hyphen for further variants."""
