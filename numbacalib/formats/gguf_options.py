"""The options of each architecture that GGUF files have beside those of all, made of a configuration.

Keys and values are those of llama.cpp's converter,
https://github.com/ggml-org/llama.cpp/tree/master/conversion; `numbacalib.models.gguf_architectures` reads
them back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from numbacalib.models.description import SLIDING, every

if TYPE_CHECKING:
    from numbacalib.models.config import ModelConfig

Options = dict[str, Any]
"""By key, without the architecture's name before it."""


class Written(NamedTuple):
    """An architecture's name in GGUF, and the options that only it has."""

    architecture: str
    options: Callable[[ModelConfig], Options]


def _nothing(config: ModelConfig) -> Options:
    del config
    return {}


def _window(config: ModelConfig) -> Options:
    """One window, of all layers."""
    windows = {window for window in config.sliding_windows if window}
    return {"attention.sliding_window": max(windows)} if windows else {}


def _phi3(config: ModelConfig) -> Options:
    original = config.rope_scaling.get("original_max_position_embeddings")
    own = {"rope.scaling.original_context_length": original or config.max_position_embeddings}
    return {"attention.sliding_window": 0} | own | _window(config)


def _windows(config: ModelConfig, period: int = 1) -> Options:
    """A window, and which layers have it, where that is not all but every `period`-th."""
    flags = [window is not None for window in config.sliding_windows]
    if not any(flags):
        return {}
    usual = [kind == SLIDING for kind in every(config.num_layers, period)]
    pattern = {"attention.sliding_window_pattern": np.array(flags)}
    return _window(config) | (pattern if flags != usual else {})


def _gemma2(config: ModelConfig) -> Options:
    caps = {
        "attn_logit_softcapping": float(config.attention_cap),
        "final_logit_softcapping": float(config.logit_cap),
    }
    return _windows(config, 2) | caps


def _local_base(config: ModelConfig) -> Options:
    """The rotary base of layers with windows."""
    local = config.local_rope
    return {} if local is None else {"rope.freq_base_swa": float(local[0])}


def _gemma3(config: ModelConfig) -> Options:
    cap = {"final_logit_softcapping": float(config.logit_cap)} if config.logit_cap else {}
    return _windows(config, 6) | _local_base(config) | cap


def _olmo3(config: ModelConfig) -> Options:
    return _windows(config) | _local_base(config)


def _cohere(config: ModelConfig) -> Options:
    return {"logit_scale": float(config.logit_scale)}


def _cohere2(config: ModelConfig) -> Options:
    return _cohere(config) | _windows(config, 4)


def _granite(config: ModelConfig) -> Options:
    scale = config.attention_scale
    return {
        "attention.scale": config.head_dim**-0.5 if scale is None else float(scale),
        "embedding_scale": float(config.embedding_scale),
        "residual_scale": float(config.residual_scale),
        "logit_scale": 1 / config.logit_scale,
    }


def _counts(config: ModelConfig) -> Options:
    """Counts of experts, and of those that a token goes through."""
    mixture = config.mixture
    if mixture is None:
        return {}
    return {"expert_count": mixture.experts, "expert_used_count": mixture.routing.experts}


def _mixtral(config: ModelConfig) -> Options:
    return _window(config) | _counts(config)


def _granitemoe(config: ModelConfig) -> Options:
    return _granite(config) | _counts(config)


def _qwen3_moe(config: ModelConfig) -> Options:
    assert config.mixture is not None
    return _counts(config) | {"expert_feed_forward_length": config.mixture.size}


def _qwen2_moe(config: ModelConfig) -> Options:
    assert config.mixture is not None
    shared = {"expert_shared_feed_forward_length": config.mixture.shared_size}
    return _qwen3_moe(config) | shared


def _sparse(config: ModelConfig) -> Options:
    """Experts behind a few dense layers, and those that all tokens go through."""
    assert config.mixture is not None
    mixture, routing = config.mixture, config.mixture.routing
    if not any(mixture.layers):
        raise ValueError("first_k_dense_replace: expected experts in a layer of a GGUF, got none")
    return _qwen3_moe(config) | {
        "expert_shared_count": mixture.shared_size // mixture.size,
        "leading_dense_block_count": mixture.layers.index(True),
        "expert_gating_func": 2 if routing.scoring == "sigmoid" else 1,
        "expert_weights_norm": routing.normalized,
        "expert_weights_scale": float(routing.factor),
        "expert_group_count": routing.groups,
        "expert_group_used_count": routing.kept_groups,
    }


def _deepseek2(config: ModelConfig) -> Options:
    """Latent attention as one head of keys, which is the latent vector and the part that turns."""
    latent = config.latent
    assert latent is not None
    queries = {"attention.q_lora_rank": latent.query_size} if latent.query_size else {}
    if not queries and config.num_layers not in _LITE:
        raise ValueError(
            f"q_lora_rank: expected a number in a deepseek2 of {config.num_layers} layers in GGUF, got none"
        )
    return (
        _sparse(config)
        | queries
        | {
            "attention.head_count_kv": 1,
            "attention.kv_lora_rank": latent.size,
            "attention.key_length": latent.size + config.rotary_dim,
            "attention.value_length": latent.size,
            "attention.key_length_mla": config.head_dim,
            "attention.value_length_mla": latent.value_dim,
        }
    )


_LITE = (26, 27)
"""Layers of the models in which llama.cpp looks for queries without a latent vector of their own."""


def _gpt_oss(config: ModelConfig) -> Options:
    if config.tie_word_embeddings:
        raise ValueError("tie_word_embeddings: expected false of a gpt-oss in GGUF, got true")
    return _windows(config, 2) | _qwen3_moe(config)


def _llama4(config: ModelConfig) -> Options:
    assert config.mixture is not None
    layers = config.mixture.layers
    return _qwen3_moe(config) | {"interleave_moe_layer_step": layers.index(True) + 1}


def _mistral3(config: ModelConfig) -> Options:
    growth = config.query_growth
    return {"attention.temperature_scale": float(growth.rate)} if growth else {}


def _gptneox(config: ModelConfig) -> Options:
    return {"use_parallel_residual": config.architecture.parallel}


def _stablelm(config: ModelConfig) -> Options:
    del config
    return {"use_parallel_residual": False}


WRITTEN = {
    "arcee": Written("arcee", _nothing),
    "cohere": Written("command-r", _cohere),
    "cohere2": Written("cohere2", _cohere2),
    "deepseek_v2": Written("deepseek2", _deepseek2),
    "deepseek_v3": Written("deepseek2", _deepseek2),
    "ernie4_5": Written("ernie4_5", _nothing),
    "exaone4": Written("exaone4", _windows),
    "gemma": Written("gemma", _nothing),
    "gemma2": Written("gemma2", _gemma2),
    "gemma3_text": Written("gemma3", _gemma3),
    "glm": Written("chatglm", _nothing),
    "glm4": Written("glm4", _nothing),
    "glm4v_text": Written("glm4", _nothing),
    "glm4_moe": Written("glm4moe", _sparse),
    "gpt2": Written("gpt2", _nothing),
    "gpt_neox": Written("gptneox", _gptneox),
    "gpt_oss": Written("gpt-oss", _gpt_oss),
    "granite": Written("granite", _granite),
    "granitemoe": Written("granitemoe", _granitemoe),
    "hunyuan_v1_dense": Written("hunyuan-dense", _nothing),
    "internlm3": Written("llama", _nothing),
    "kimi_k2": Written("deepseek2", _deepseek2),
    "llama": Written("llama", _nothing),
    "llama4_text": Written("llama4", _llama4),
    "ministral3": Written("mistral3", _mistral3),
    "mistral": Written("llama", _window),
    "mixtral": Written("llama", _mixtral),
    "nemotron": Written("nemotron", _nothing),
    "olmo2": Written("olmo2", _nothing),
    "olmo3": Written("olmo2", _olmo3),
    "phi": Written("phi2", _nothing),
    "phi3": Written("phi3", _phi3),
    "qwen2": Written("qwen2", _nothing),
    "qwen2_5_vl_text": Written("qwen2vl", _nothing),
    "qwen2_moe": Written("qwen2moe", _qwen2_moe),
    "qwen2_vl_text": Written("qwen2vl", _nothing),
    "qwen3": Written("qwen3", _nothing),
    "qwen3_moe": Written("qwen3moe", _qwen3_moe),
    "qwen3_vl_text": Written("qwen3vl", _nothing),
    "seed_oss": Written("seed_oss", _nothing),
    "smollm3": Written("smollm3", _nothing),
    "stablelm": Written("stablelm", _stablelm),
    "starcoder2": Written("starcoder2", _nothing),
}
"""By Hugging Face's ``model_type``."""
