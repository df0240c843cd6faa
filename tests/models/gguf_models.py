"""Random checkpoints of the architectures that GGUF files are written of, rows of whole blocks of 256."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from models.described import described_tensors
from models.tiny import VOCAB_SIZE, tiny_tokenizer
from safetensors.numpy import save_file

from numbacalib.models import ModelConfig
from numbacalib.models.architectures import ARCHITECTURES

FULL, SLIDING = "full_attention", "sliding_attention"
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 128,
}
FACTORS = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.2,
    "logits_scaling": 4.0,
}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA4 = LLAMA3 | {"factor": 16.0, "high_freq_factor": 1.0}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + i / 8 for i in range(24)],
    "long_factor": [2.0 + i for i in range(24)],
    "attention_factor": 1.1875,
}

SPARSE = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "first_k_dense_replace": 1,
}
LATENT = SPARSE | {
    "head_dim": None,
    "num_key_value_heads": 4,
    "q_lora_rank": 256,
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 96,
}
WEIGHED_YARN = YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}
SECTIONS = {"rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12]}}

DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "partial_rotary_factor": 0.5,
}
GATED_SHARED = EXPERTS | {"shared_expert_intermediate_size": 256}
MROPE = {
    "rope_type": "default",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.5,
    "mrope_section": [6, 5, 5],
}
GEMMA4 = {
    "global_head_dim": 128,
    "sliding_window": 16,
    "hidden_size_per_layer_input": 256,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "layer_types": [SLIDING, FULL, SLIDING, FULL],
    "rope_parameters": {
        FULL: {
            "rope_type": "proportional",
            "rope_theta": 1e6,
            "partial_rotary_factor": 0.25,
        },
        SLIDING: {"rope_type": "default", "rope_theta": 1e4},
    },
}

MAMBA = FACTORS | {
    "layer_types": ["mamba", "attention", "mamba", "attention"],
    "mamba_n_heads": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 32,
    "shared_intermediate_size": 512,
}
ATTENTION = MAMBA | {"layer_types": ["attention"] * 4, "position_embedding_type": "rope"}
NEMOTRON = {
    "mamba_num_heads": 8,
    "mamba_head_dim": 32,
    "n_groups": 2,
    "ssm_state_size": 32,
    "num_key_value_heads": 1,
}
NEMOTRON_EXPERTS = NEMOTRON | {
    "layer_types": ["mamba", "moe", "attention", "moe"],
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "moe_shared_expert_intermediate_size": 256,
    "routed_scaling_factor": 1.5,
}
CONVOLUTIONS = {"layer_types": ["conv", FULL, "conv", FULL], "num_key_value_heads": 1}

MODELS: dict[str, dict[str, Any]] = {
    "afmoe": EXPERTS
    | {"num_dense_layers": 1, "mup_enabled": True, "sliding_window": 16, "route_scale": 1.5},
    "arcee": {},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25, "sliding_window": 16},
    "deepseek_v2": LATENT | {"n_shared_experts": 1, "rope_scaling": WEIGHED_YARN},
    "deepseek_v2-lite": LATENT
    | {"q_lora_rank": None, "num_hidden_layers": 26, "first_k_dense_replace": 25},
    "deepseek_v3": LATENT | {"n_group": 2, "topk_group": 1, "rope_scaling": WEIGHED_YARN},
    "dots1": SPARSE | {"num_key_value_heads": 4, "n_shared_experts": 2, "norm_topk_prob": True},
    "ernie4_5": {},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 256},
    "exaone": {"rope_scaling": LLAMA3},
    "exaone4": {"sliding_window": None},
    "exaone_moe": SPARSE | {"sliding_window": 16},
    "falcon": {"num_key_value_heads": None},
    "falcon-two-norms": {"new_decoder_architecture": True},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 64, "sliding_window": 16},
    "gemma3_text": {"query_pre_attn_scalar": 64, "sliding_window": 16, "num_hidden_layers": 7},
    "gemma4_text": GEMMA4
    | {"num_kv_shared_layers": 2, "use_double_wide_mlp": True, "final_logit_softcapping": 20.0},
    "gemma4_text-experts": GEMMA4
    | {"hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "enable_moe_block": True}
    | {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 256}
    | {"num_global_key_value_heads": 1},
    "gemma4_unified_text": GEMMA4
    | {"hidden_size_per_layer_input": None, "vocab_size_per_layer_input": None},
    "glm": {},
    "glm4": {},
    "glm4v_text": {"rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6]}},
    "glm4_moe": SPARSE | {"routed_scaling_factor": 1.5, "use_qk_norm": True},
    "glm4_moe_lite": LATENT,
    "gpt2": {"num_key_value_heads": None, "intermediate_size": None, "n_positions": 128},
    "gpt_bigcode": {"num_key_value_heads": None, "intermediate_size": None, "n_positions": 128},
    "gpt_neox": {"num_key_value_heads": None},
    "gpt_neox-sequential": {"num_key_value_heads": None, "use_parallel_residual": False},
    "gpt_oss": LOCAL_EXPERTS | {"sliding_window": 16, "rope_scaling": YARN},
    "granite": FACTORS,
    "granitemoe": FACTORS | LOCAL_EXPERTS,
    "granitemoehybrid": MAMBA
    | {"num_local_experts": 0, "num_experts_per_tok": 0, "position_embedding_type": "rope"},
    "granitemoehybrid-attention": ATTENTION | {"num_local_experts": 0, "num_experts_per_tok": 0},
    "granitemoehybrid-attention-experts": ATTENTION | LOCAL_EXPERTS,
    "granitemoehybrid-experts": MAMBA | LOCAL_EXPERTS | {"shared_intermediate_size": 256},
    "granitemoeshared": FACTORS | LOCAL_EXPERTS | {"shared_intermediate_size": 256},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "internlm3": {},
    "jais2": {"num_key_value_heads": 4},
    "kimi_k2": LATENT | {"n_group": 1, "topk_group": 1},
    "lfm2": CONVOLUTIONS | {"block_auto_adjust_ff_dim": False},
    "lfm2_moe": CONVOLUTIONS | EXPERTS | {"num_dense_layers": 1, "conv_L_cache": 4},
    "llama4_text": LOCAL_EXPERTS
    | {"intermediate_size_mlp": 512, "intermediate_size": 256, "rope_scaling": LLAMA4},
    "llama4_text-interleaved": LOCAL_EXPERTS
    | {"intermediate_size_mlp": 512, "interleave_moe_layer_step": 2},
    "minimax_m2": LOCAL_EXPERTS | {"rotary_dim": 32},
    "ministral3": {"rope_parameters": WEIGHED_YARN | {"mscale": 1.0, "llama_4_scaling_beta": 0.1}},
    "mixtral": LOCAL_EXPERTS | {"num_local_experts": 8},
    "nemotron": {},
    "nemotron_h": NEMOTRON
    | {"layer_types": ["mamba", "mlp", "mlp", "attention", "mlp"], "num_hidden_layers": 5},
    "nemotron_h-experts": NEMOTRON_EXPERTS,
    "nemotron_h-latent": NEMOTRON_EXPERTS | {"moe_latent_size": 128},
    "olmo2": {},
    "olmo3": {"sliding_window": 16, "rope_scaling": YARN},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4},
    "phi": {},
    "phi3": {"sliding_window": None},
    "phi3-longrope": {
        "partial_rotary_factor": 0.75,
        "max_position_embeddings": 1024,
        "original_max_position_embeddings": 512,
        "rope_scaling": LONGROPE,
    },
    "qwen2_5_vl_text": SECTIONS,
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 256},
    "qwen2_vl_text": SECTIONS,
    "qwen3_5_text": DELTA | {"rope_parameters": MROPE, "partial_rotary_factor": None},
    "qwen3_5_text-same-heads": DELTA | {"linear_num_key_heads": 4, "linear_num_value_heads": 4},
    "qwen3_5_moe_text": DELTA | GATED_SHARED | {"num_hidden_layers": 5},
    "qwen3_next": DELTA | GATED_SHARED | {"full_attention_interval": 2},
    "qwen3_vl_moe_text": EXPERTS | SECTIONS,
    "qwen3_vl_text": SECTIONS,
    "qwen3_moe": EXPERTS | {"norm_topk_prob": True},
    "seed_oss": {},
    "smollm3": {},
    "solar_open": SPARSE | {"first_k_dense_replace": 0},
    "stablelm": {},
    "starcoder2": {},
    "youtu": {name: size for name, size in LATENT.items() if name not in SPARSE},
}
"""By ``model_type``, with something after a hyphen for variants; llama's relatives are `models.tiny`'s."""


MAY_BE_NONE = ("sliding_window", "q_lora_rank", "n_inner")
"""Keys for which null is not the default."""


def model_config(name: str, **overrides: Any) -> dict[str, Any]:
    """Return the ``config.json`` of one of `MODELS`."""
    kind = name.partition("-")[0]
    named = {ARCHITECTURES[kind].key(key): value for key, value in SIZES.items()}
    config = named | {"model_type": kind} | MODELS[name] | overrides
    return {key: value for key, value in config.items() if value is not None or key in MAY_BE_NONE}


def write_model(directory: Path, name: str, **overrides: Any) -> Path:
    """Write one of `MODELS`, float32, with a tokenizer; return its directory."""
    directory.mkdir(parents=True)
    kind, config = name.partition("-")[0], model_config(name, **overrides)
    (directory / "config.json").write_text(json.dumps(config))
    tensors = described_tensors(ModelConfig.from_hf(config))
    for tensor, values in tensors.items():
        if kind.startswith("gemma4") and tensor.endswith(("q_norm.weight", "k_norm.weight")):
            values *= np.float32(SIZES["head_dim"] ** -0.25)  # no factor of scores does so
        elif tensor.endswith("layer_scalar"):
            values[:] = 0.7
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    tiny_tokenizer().save(str(directory / "tokenizer.json"))
    return directory
