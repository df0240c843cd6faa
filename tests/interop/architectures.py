"""A tiny random checkpoint of every architecture, as transformers itself writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
"""Of every model, where its variant does not say otherwise: K of 64 and 96, M of 32 to 320."""

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0 + i / 8 for i in range(6)],
    "long_factor": [2.0 + i for i in range(6)],
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
BY_KIND = {
    "full_attention": {"rope_theta": 5e4, **YARN},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
FULL, SLIDING = "full_attention", "sliding_attention"

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
# Keys of sizes that the oldest have under other names.
ELSEWHERE = {"intermediate_size": None, "num_key_value_heads": None}
FALCON = ELSEWHERE | {"ffn_hidden_size": 96}

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

LLAMA4 = {
    "head_dim": 16,
    "intermediate_size": 32,
    "intermediate_size_mlp": 96,
    "num_local_experts": 4,
    "floor_scale": 5,
    "attn_scale": 0.3,
}

GEMMA4 = {
    "head_dim": 16,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 0,
    "sliding_window": 7,
    "num_hidden_layers": 3,
    "layer_types": [SLIDING, FULL, SLIDING],
}

VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 7},
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
    "starcoder2": {"sliding_window": 9},
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
    "phi": {"num_key_value_heads": 4},
    "nemotron": {"attention_bias": True, "mlp_bias": True},
    "stablelm": {"use_qkv_bias": True},
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
    "olmoe": FEW_EXPERTS,
    "flex_olmo": FEW_EXPERTS | {"norm_topk_prob": True},
    "minimax_m2": FEW_EXPERTS | {"head_dim": 16, "rotary_dim": 8},
    "glm4_moe_lite": LATENT,
    "youtu": {"num_key_value_heads": 4}
    | {name: size for name, size in LATENT.items() if name.endswith(("_rank", "_dim"))},
    "afmoe": FEW_EXPERTS
    | {"head_dim": 16, "num_hidden_layers": 4, "sliding_window": 7, "moe_intermediate_size": 32}
    | {"route_scale": 1.5, "mup_enabled": True},
    "exaone_moe": FEW_EXPERTS
    | {"num_hidden_layers": 4, "sliding_window": 7, "moe_intermediate_size": 32}
    | {"n_group": 2, "topk_group": 1},
    "ernie4_5_moe": {"moe_num_experts": 8, "moe_k": 3, "moe_intermediate_size": 32},
    "vaultgemma": {"head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 10},
    "cwm": {
        "head_dim": 16,
        "sliding_window": 7,
        "rope_parameters": YARN | {"rope_theta": 1e4},
    },
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
"""Overrides of `SIZES` by ``model_type``, with something after a hyphen for further variants."""


MINUS_1 = "gemma", "vaultgemma", "nemotron", "qwen3_next", "qwen3_5"
"""Those whose norms are of 1 + w, but for Gemma 4."""
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
    "mistral3": {
        "text_config": {
            "model_type": "ministral3",
            "head_dim": 16,
            "rope_parameters": VARIANTS["ministral3"]["rope_parameters"],
        },
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
    "idefics3": {"text_config": {"model_type": "llama"}, "vision_config": TOWER},
    "smolvlm": {"text_config": {"model_type": "llama"}, "vision_config": TOWER},
}
"""Models that hold a decoder of text, by ``model_type``."""


def config_of(variant: str, **overrides: Any) -> Any:
    """The configuration of a variant, as transformers has it."""
    model_type = variant.partition("-")[0]
    if model_type in WRAPPED:
        given = WRAPPED[model_type]
        return AutoConfig.for_model(
            model_type, **given | {"text_config": SIZES | given["text_config"]}
        )
    return AutoConfig.for_model(model_type, **(SIZES | VARIANTS[variant] | overrides))


def save(
    directory: Path, variant: str, dtype: torch.dtype = torch.float32, **overrides: Any
) -> Any:
    """Write a model with weights large enough that every part shows in the logits, and return it."""
    torch.manual_seed(0)
    shards = overrides.pop("max_shard_size", "5GB")
    kind = AutoModelForImageTextToText if variant in WRAPPED else AutoModelForCausalLM
    model = kind.from_config(config_of(variant, **overrides)).eval()
    if dtype != torch.float32:  # which it is, but for tables of complex numbers
        model = model.to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                minus_1 = variant.startswith(MINUS_1) and not variant.startswith("gemma4")
                mean = 0.0 if minus_1 and "linear_attn" not in name else 1.0
                parameter.normal_(mean, 0.1)
            elif parameter.ndim == 1:
                parameter.normal_(0, 0.3)
            else:
                parameter.normal_(0, 1.5 * parameter.shape[-1] ** -0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.fill_(0.7)
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.2)
    model.save_pretrained(directory, max_shard_size=shards)
    if variant == "kimi_k25":
        _name_layers_as_published(directory / "model.safetensors")
    return model


def _name_layers_as_published(file: Path) -> None:
    """Give the decoder's layers their names: transformers 5.24 writes the tower's word for them."""
    theirs, named = "language_model.model.blocks.", "language_model.model.layers."
    tensors = load_file(file).items()
    renamed = {
        named + name.removeprefix(theirs) if name.startswith(theirs) else name: tensor
        for name, tensor in tensors
    }
    save_file(renamed, file, metadata={"format": "pt"})
