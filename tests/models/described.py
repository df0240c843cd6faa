"""Random checkpoints of other architectures than llama's, with the tensors that their descriptions name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from models.tiny import VOCAB_SIZE, tiny_tokenizer
from numpy.typing import NDArray
from safetensors.numpy import save_file

from numbacalib.models import ModelConfig
from numbacalib.models.architectures import ARCHITECTURES
from numbacalib.models.layer_tensors import (
    EMBEDDINGS,
    HEAD,
    expert_shapes,
    is_linear,
    is_norm,
    linear_shapes,
    outer_shapes,
    vector_shapes,
)

DESCRIBED: dict[str, dict[str, Any]] = {
    # norms minus 1 before and after, caps, windows, GELU, scaled embeddings
    "gemma2": {"sliding_window": 3, "query_pre_attn_scalar": 10, "hidden_activation": "gelu"},
    # LayerNorm, parallel, neighbours turn, normalized heads, a factor of logits
    "cohere": {"use_qk_norm": True, "attention_bias": True},
    # fused layers, of which a part turns
    "phi3": {"partial_rotary_factor": 0.5},
    # norms after, of all heads together
    "olmo2": {},
    # no gate, biases everywhere, names of its own
    "phi": {"hidden_act": "gelu"},
    # factors of the residual stream, of scores and of logits
    "granite": {"residual_multiplier": 0.5, "attention_multiplier": 0.2, "logits_scaling": 4.0},
    # latent attention, of a part that turns and one that does not, with heads of values of another length
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "n_group": 1,
        "topk_group": 1,
    },
    # sinks, experts with biases and clamped gates
    "gpt_oss": {
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "sliding_window": 3,
        "swiglu_limit": 1.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    # runs of positions, layers that do not turn and whose queries grow, experts of scaled inputs
    "llama4_text": {
        "intermediate_size_mlp": 16,
        "num_local_experts": 3,
        "no_rope_layer_interval": 2,
        "attention_chunk_size": 3,
        "floor_scale": 2,
    },
    # learned positions, matrices that files hold transposed
    "gpt2": {},
    "opt": {},
    # one head of keys in one layer with its queries, and windows beside positions
    "gpt_bigcode": {},
    "gpt_neo": {
        "num_hidden_layers": 2,
        "attention_layers": ["global", "local"],
        "window_size": 3,
    },
    # a part of each head turns, with neighbours, in a parallel block
    "gptj": {"rotary_dim": 8},
    "gpt_neox": {},
    "deepseek_v2": {
        "num_key_value_heads": 4,
        "q_lora_rank": None,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "n_shared_experts": 1,
    },
    # queries, keys and values of a head of keys after each other
    "falcon": {"new_decoder_architecture": True, "bias": True},
    # experts, and an MLP with a gate that all tokens go through, but in the second layer
    "qwen2_moe": {
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "mlp_only_layers": [1],
    },
    # a gated delta net in the place of attention, and attention with gates
    "qwen3_next": {
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "mlp_only_layers": [0],
        "partial_rotary_factor": 0.5,
    },
    "qwen3_5_text": {
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "partial_rotary_factor": 0.5,
    },
    # heads of another length, keys for values, normalized values, a factor of a block
    "gemma4_unified_text": {
        "attention_k_eq_v": True,
        "global_head_dim": 32,
        "num_global_key_value_heads": 1,
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 3,
        "rope_parameters": {
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25},
            "sliding_attention": {"rope_type": "default"},
        },
    },
    # vectors of tokens in each block, keys of an earlier one, experts beside an MLP with norms of their own
    "gemma4_text": {
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "global_head_dim": 8,
        "num_hidden_layers": 3,
        "num_kv_shared_layers": 1,
        "use_double_wide_mlp": True,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "sliding_window": 3,
        "enable_moe_block": True,
        "num_experts": 3,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
        "rope_parameters": {
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25},
            "sliding_attention": {"rope_type": "default"},
        },
    },
    # a short convolution in the place of attention
    "lfm2": {
        "num_hidden_layers": 2,
        "layer_types": ["conv", "full_attention"],
        "block_auto_adjust_ff_dim": False,
    },
    # Mamba 2 in the place of attention, which does not turn, and no experts
    "granitemoehybrid": {
        "num_hidden_layers": 2,
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 8,
        "mamba_n_groups": 2,
        "mamba_d_state": 8,
        "num_local_experts": 0,
        "shared_intermediate_size": 96,
    },
    # a gate for each head, layers with more heads, of which another part turns
    "laguna": {
        "num_attention_heads_per_layer": [4, 6],
        "layer_types": ["full_attention", "sliding_attention"],
        "num_hidden_layers": 2,
        "sliding_window": 3,
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    # blocks of one sublayer each, experts without gates that read shorter vectors
    "nemotron_h": {
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "moe", "full_attention", "mlp"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "ssm_state_size": 8,
        "n_routed_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 24,
        "moe_latent_size": 32,
    },
    # latent attention whose queries grow, what does not turn of them, too
    "mistral4": {
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 8,
        "head_dim": 8,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
        "n_routed_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
            "llama_4_scaling_beta": 0.5,
            "original_max_position_embeddings": 4,
        },
    },
    # a layer for gates of attention alone, layers with windows that alone turn
    "afmoe": {
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "sliding_window": 3,
        "num_hidden_layers": 2,
        "global_attn_every_n_layers": 2,
    },
    # a softmax with a correction, [1, E]
    "ernie4_5_moe": {"moe_num_experts": 3, "moe_k": 2, "moe_intermediate_size": 16},
    # sigmoids with a correction, groups of experts, a factor
    "glm4_moe": {
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "n_group": 3,
        "topk_group": 2,
        "routed_scaling_factor": 1.5,
        "first_k_dense_replace": 0,
    },
}
"""Options of the forward pass, each in one of them, and what configurations are tried of."""


def described_config(model_type: str, /, **overrides: Any) -> dict[str, Any]:
    """A ``config.json`` of 2 layers, 4 query heads on 2 key heads, K of 64 and 96."""
    config = {
        "model_type": model_type,
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
    }
    key = ARCHITECTURES[model_type].key
    options = config | DESCRIBED[model_type] | overrides
    options = {key(name): value for name, value in options.items()}
    if model_type == "llama4_text":  # llama's key is the experts' there
        options["intermediate_size"] = 16
    return options


def described_tensors(config: ModelConfig, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random weights by the names that files have."""
    rng = np.random.default_rng(seed)
    table = (config.vocab_size, config.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {EMBEDDINGS: table, **outer_shapes(config)}
    if not config.tie_word_embeddings:
        shapes[HEAD] = table
    for index in range(config.num_layers):
        own = linear_shapes(config, index) | vector_shapes(config, index)
        own |= expert_shapes(config, index)
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in own.items()}
    theirs = {ours: name for name, ours in config.architecture.renamed.items()}
    tensors = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, np.float32)
        if "norm" in name and name.endswith(".weight"):
            offset = config.architecture.norm_offset if is_norm(config, name) else 0
            values = 1 - np.float32(offset) + 0.1 * values
        elif len(shape) == 1:
            values *= 0.1
        elif name != EMBEDDINGS:
            values *= shape[1] ** -0.5
        beginning = next((ours for ours in theirs if name.startswith(ours)), "")
        if config.architecture.transposed and is_linear(name, config):
            values = np.ascontiguousarray(values.T)
        tensors[theirs.get(beginning, "") + name.removeprefix(beginning)] = values
    return tensors


def write_described_checkpoint(
    directory: Path, model_type: str, /, dtype: str = "float32", **overrides: Any
) -> Path:
    """Write a random checkpoint with a tokenizer, and return its directory."""
    directory.mkdir(parents=True, exist_ok=True)
    config = described_config(model_type, torch_dtype=dtype, **overrides)
    (directory / "config.json").write_text(json.dumps(config))
    numpy_dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    tensors = described_tensors(ModelConfig.from_hf(config))
    stored = {name: tensor.astype(numpy_dtype) for name, tensor in tensors.items()}
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    tiny_tokenizer().save(str(directory / "tokenizer.json"))
    return directory
