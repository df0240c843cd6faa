"""Conversion of GGUF options of experts to configuration keys.

Source: llama.cpp's ``src/models``, https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from numbacalib.models.gguf_metadata import Metadata
from numbacalib.models.gguf_windows import (
    WINDOW,
    Config,
    rope_parameters,
    sections,
    windows,
)

__all__ = [
    "afmoe",
    "counts",
    "deepseek2",
    "dots1",
    "ernie4_5_moe",
    "exaone_moe",
    "glm4_moe",
    "gpt_oss",
    "hunyuan_moe",
    "latent_variant",
    "llama4",
    "minimax_m2",
    "olmoe",
    "qwen2_moe",
    "qwen3_moe",
    "qwen3_vl_moe",
]

_SIGMOID = 2
"""Value of ``expert_gating_func``."""
_LLAMA4_RUN = 8192
"""Positions of an attention chunk in Llama 4, and period of the query growth in its other layers."""


def counts(options: Metadata, key: str) -> Config:
    """Return the number of experts, under the configuration's own key, and of experts per token."""
    return {
        key: options.required("expert_count"),
        "num_experts_per_tok": options.required("expert_used_count"),
    }


def qwen3_moe(options: Metadata, config: Config) -> Config:
    del config
    return counts(options, "num_experts") | {
        "moe_intermediate_size": options.required("expert_feed_forward_length"),
        "norm_topk_prob": True,
        "use_sliding_window": False,
    }


def qwen2_moe(options: Metadata, config: Config) -> Config:
    shared = options.required("expert_shared_feed_forward_length")
    own = {"shared_expert_intermediate_size": shared, "norm_topk_prob": False}
    return qwen3_moe(options, config) | own


def sigmoid(options: Metadata) -> None:
    """Refuse a router that does not score by sigmoids."""
    if options.integer("expert_gating_func", _SIGMOID) != _SIGMOID:
        raise options.error("expert_gating_func", f"{_SIGMOID}, sigmoids")


def glm4_moe(options: Metadata, config: Config) -> Config:
    del config
    sigmoid(options)
    return experts_behind_dense_layers(options)


def gpt_oss(options: Metadata, config: Config) -> Config:
    """``intermediate_size`` is an expert's width; gates are clamped by the published defaults."""
    found = counts(options, "num_local_experts") | windows(options, config, 0, 2)
    width = options.required("expert_feed_forward_length")
    return found | rope_parameters(config) | {"intermediate_size": width}


def llama4(options: Metadata, config: Config) -> Config:
    """Attention chunks, layers without rotary embedding and query growth are fixed in llama.cpp."""
    del config
    if not options.integer(WINDOW, _LLAMA4_RUN):
        raise options.error(WINDOW, "attention chunks in three layers of four")
    step = options.required("interleave_moe_layer_step")
    count = options.required("expert_count")
    return counts(options, "num_local_experts") | {
        "intermediate_size": options.required("expert_feed_forward_length"),
        "interleave_moe_layer_step": step,
        "use_qk_norm": count != 128,  # llama.cpp tells the two published models apart by it
        "attention_chunk_size": _LLAMA4_RUN,
        "attn_temperature_tuning": True,
        "attn_scale": 0.1,
        "floor_scale": _LLAMA4_RUN,
    }


def latent_variant(options: Metadata) -> str:
    """DeepSeek V2 scores experts by a softmax, V3 by sigmoids; Youtu has no experts."""
    if not options.integer("expert_count", 0):
        return "youtu"
    sigmoid = options.integer("expert_gating_func", 0) == _SIGMOID
    return "deepseek_v3" if sigmoid else "deepseek_v2"


def deepseek2(options: Metadata, config: Config) -> Config:
    rotary = options.required("rope.dimension_count")
    length = options.integer("attention.key_length", 0)
    values = options.integer("attention.value_length", 0)
    found: Config = {
        "q_lora_rank": options.integer("attention.q_lora_rank", 0) or None,
        "kv_lora_rank": options.required("attention.kv_lora_rank"),
        "qk_nope_head_dim": options.integer("attention.key_length_mla", length) - rotary,
        "v_head_dim": options.integer("attention.value_length_mla", values),
    }
    if config["model_type"] == "youtu":
        return found
    found |= experts_behind_dense_layers(options)
    if config["model_type"] == "deepseek_v3":
        return found | {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
    if options.boolean("expert_weights_norm", False):
        raise options.error("expert_weights_norm", "false with a softmax router")
    if found["n_group"] > 1:
        raise options.error("expert_group_count", "1 with a softmax router")
    return found | {"topk_method": "greedy"}


def experts_behind_dense_layers(options: Metadata) -> Config:
    return counts(options, "n_routed_experts") | {
        "moe_intermediate_size": options.required("expert_feed_forward_length"),
        "n_shared_experts": options.required("expert_shared_count"),
        "first_k_dense_replace": options.integer("leading_dense_block_count", 0),
        "norm_topk_prob": options.boolean("expert_weights_norm", False),
        "routed_scaling_factor": options.number("expert_weights_scale", 0.0) or 1.0,
        "n_group": options.integer("expert_group_count", 0) or 1,
        "topk_group": options.integer("expert_group_used_count", 0) or 1,
    }


def dots1(options: Metadata, config: Config) -> Config:
    del config
    sigmoid(options)
    return experts_behind_dense_layers(options) | {"sliding_window": None}


def afmoe(options: Metadata, config: Config) -> Config:
    """Embeddings are always scaled in llama.cpp."""
    sigmoid(options)
    found = experts_behind_dense_layers(options)
    own = {
        "moe_intermediate_size": found["moe_intermediate_size"],
        "num_shared_experts": found["n_shared_experts"],
        "num_dense_layers": found["first_k_dense_replace"],
        "route_norm": found["norm_topk_prob"],
        "route_scale": found["routed_scaling_factor"],
        "mup_enabled": True,
    }
    return counts(options, "num_experts") | windows(options, config, 0, 4) | own


def exaone_moe(options: Metadata, config: Config) -> Config:
    sigmoid(options)
    found = experts_behind_dense_layers(options)
    shared = found.pop("n_shared_experts")
    return found | {"num_shared_experts": shared} | windows(options, config, 128, 4)


def ernie4_5_moe(options: Metadata, config: Config) -> Config:
    del config
    size = options.required("expert_feed_forward_length")
    if options.integer("interleave_moe_layer_step", 1) != 1:
        raise options.error("interleave_moe_layer_step", "1, experts in all layers after the first")
    return {
        "moe_num_experts": options.required("expert_count"),
        "moe_k": options.required("expert_used_count"),
        "moe_intermediate_size": size,
        "moe_num_shared_experts": options.integer("expert_shared_feed_forward_length", 0) // size,
        "moe_layer_start_index": options.integer("leading_dense_block_count", 0),
    }


def hunyuan_moe(options: Metadata, config: Config) -> Config:
    """The shared expert must be as wide as the MLP."""
    shared = options.integer("expert_shared_feed_forward_length", config["intermediate_size"])
    if shared != config["intermediate_size"]:
        raise options.error("expert_shared_feed_forward_length", "feed_forward_length")
    return {
        "num_experts": options.required("expert_count"),
        "moe_topk": options.required("expert_used_count"),
        "moe_intermediate_size": options.required("expert_feed_forward_length"),
    }


def minimax_m2(options: Metadata, config: Config) -> Config:
    """Experts have the size of an MLP."""
    del config
    sigmoid(options)
    return counts(options, "num_local_experts")


def olmoe(options: Metadata, config: Config) -> Config:
    del config
    return counts(options, "num_experts")


def qwen3_vl_moe(options: Metadata, config: Config) -> Config:
    return qwen3_moe(options, config) | sections(options, config)
