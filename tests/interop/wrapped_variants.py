"""Models that hold a decoder of text beside towers that see."""

from __future__ import annotations

from typing import Any

from interop.dense_variants import DENSE, GEMMA4, GEMMA4_SMALL
from interop.expert_variants import (
    DELTA,
    DELTA_EXPERTS,
    GLM_EXPERTS,
    LATENT,
    LLAMA4,
    MAGNITUDES,
    QWEN_EXPERTS,
)

MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
TOWER |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
BLOCKS = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
BLOCKS |= {"out_hidden_size": 64, "patch_size": 14}

WRAPPED: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 7},
        "vision_config": TOWER | {"model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 1,
    },
    "kimi_k25": {
        "text_config": LATENT | {"model_type": "deepseek_v3", "n_group": 1, "topk_group": 1},
        "vision_config": TOWER | {"pos_emb_height": 4, "pos_emb_width": 4},
        "projection_hidden_size": 32,
    },
    "gemma4": {
        "text_config": GEMMA4
        | {"model_type": "gemma4_text", "attention_k_eq_v": True, "pad_token_id": 0},
        "vision_config": TOWER | {"head_dim": 16, "pooling_kernel_size": 1},
        "audio_config": None,
    },
    "gemma4-small": {
        "text_config": GEMMA4_SMALL | {"model_type": "gemma4_text", "pad_token_id": 0},
        "vision_config": TOWER | {"head_dim": 16, "pooling_kernel_size": 1},
        "audio_config": None,
    },
    "gemma4_unified": {
        "text_config": {name: GEMMA4[name] for name in GEMMA4 if "per_layer" not in name}
        | {"model_type": "gemma4_unified_text", "attention_k_eq_v": True, "pad_token_id": 0},
        "vision_config": {"mm_embed_dim": 32, "mm_posemb_size": 8, "output_proj_dims": 64},
        "audio_config": None,
    },
    "exaone4_5": {
        "text_config": {"model_type": "exaone4", "sliding_window": 7},
        "vision_config": BLOCKS | {"num_key_value_heads": 2},
    },
    "mistral3": {
        "text_config": {
            "model_type": "ministral3",
            "head_dim": 16,
            "rope_parameters": DENSE["ministral3"]["rope_parameters"],
        },
        "vision_config": TOWER | {"model_type": "pixtral", "head_dim": 16},
        "tie_word_embeddings": False,
    },
    "mistral3-experts": {
        "text_config": LATENT
        | {"model_type": "mistral4", "n_group": 1, "topk_group": 1}
        | {"rope_parameters": MAGNITUDES | {"llama_4_scaling_beta": 0.5}},
        "vision_config": TOWER | {"model_type": "pixtral", "head_dim": 16},
        "tie_word_embeddings": False,
    },
    "llama4": {
        "text_config": LLAMA4 | {"model_type": "llama4_text"},
        "vision_config": TOWER
        | {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    },
    "llava": {
        "text_config": {"model_type": "llama"},
        "vision_config": TOWER | {"model_type": "clip_vision_model"},
    },
    "internvl": {
        "text_config": {"model_type": "qwen3", "head_dim": 16},
        "vision_config": TOWER | {"image_size": [28, 28], "patch_size": [14, 14]},
    },
    "aya_vision": {
        # this release's wrapper leaves the factor of logits out, vLLM's has it
        "text_config": {"model_type": "cohere2", "sliding_window": 7, "logit_scale": 1.0},
        "vision_config": TOWER | {"model_type": "siglip_vision_model"},
    },
    "qwen2_vl": {
        "text_config": {"rope_parameters": MROPE},
        "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2},
    },
    "qwen2_5_vl": {"text_config": {"rope_parameters": MROPE}, "vision_config": BLOCKS},
    "qwen3_vl": {
        "text_config": {"rope_parameters": MROPE, "head_dim": 16},
        "vision_config": BLOCKS | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
    },
    "qwen3_5": {
        "text_config": DELTA | {"model_type": "qwen3_5_text"},
        "vision_config": BLOCKS | {"num_position_embeddings": 16},
    },
    "qwen3_5_moe": {
        "text_config": DELTA | DELTA_EXPERTS | {"model_type": "qwen3_5_moe_text"},
        "vision_config": BLOCKS | {"num_position_embeddings": 16},
    },
    "qwen3_vl_moe": {
        "text_config": QWEN_EXPERTS | {"rope_parameters": MROPE, "head_dim": 16},
        "vision_config": BLOCKS | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
    },
    "glm4v": {
        "text_config": {
            "rope_parameters": MROPE | {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}
        },
        "vision_config": BLOCKS,
    },
    "glm46v": {
        "text_config": {
            "rope_parameters": MROPE | {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}
        },
        "vision_config": BLOCKS | {"model_type": "glm4v_vision"},
    },
    "glm4v_moe": {
        "text_config": GLM_EXPERTS
        | {"rope_parameters": MROPE | {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}},
        "vision_config": BLOCKS,
    },
    "cohere2_vision": {
        "text_config": {"model_type": "cohere2", "sliding_window": 7, "logit_scale": 1.0},
        "vision_config": TOWER | {"model_type": "siglip_vision_model"},
        "alignment_intermediate_size": 64,
    },
    "lfm2_vl": {
        "text_config": DENSE["lfm2"] | {"model_type": "lfm2"},
        "vision_config": TOWER | {"model_type": "siglip2_vision_model", "num_patches": 4},
        "projector_hidden_size": 32,
    },
    "lfm3_vl": {
        "text_config": DENSE["lfm3"] | {"model_type": "lfm3"},
        "vision_config": TOWER,
        "projector_hidden_size": 32,
    },
    "idefics3": {"text_config": {"model_type": "llama"}, "vision_config": TOWER},
    "smolvlm": {"text_config": {"model_type": "llama"}, "vision_config": TOWER},
}
"""Models that hold a decoder of text, by ``model_type``."""
