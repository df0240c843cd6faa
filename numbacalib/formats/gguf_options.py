"""Architecture-specific options of GGUF files, derived from a configuration.

Keys and values are those of llama.cpp's converter,
https://github.com/ggml-org/llama.cpp/tree/master/conversion; `numbacalib.models.gguf_architectures` reads
them back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from numbacalib.formats.gguf_granite import (
    granite,
    granite4,
    granite4_variant,
    granitemoe,
    granitemoeshared,
)
from numbacalib.formats.gguf_hybrids import (
    delta_net,
    gemma4,
    lfm2,
    lfm2_moe,
    nemotron_h,
    nemotron_h_variant,
)
from numbacalib.formats.gguf_limits import refused
from numbacalib.formats.gguf_mixtures import counts, qwen2_moe, qwen3_moe, sparse
from numbacalib.models.windows import SLIDING, every

if TYPE_CHECKING:
    from numbacalib.models.config import ModelConfig

log = logging.getLogger("numbacalib")

Options = dict[str, Any]
"""Options by key, without the architecture's prefix."""


class Written(NamedTuple):
    """An architecture's name in GGUF, and its specific options."""

    architecture: str
    options: Callable[[ModelConfig], Options]
    variant: Callable[[ModelConfig], str] | None = None
    """Returns a model's name there, if there are several."""

    def name_of(self, config: ModelConfig) -> str:
        """Return the name of a model's architecture."""
        return self.architecture if self.variant is None else self.variant(config)


def _nothing(config: ModelConfig) -> Options:
    del config
    return {}


def _window(config: ModelConfig) -> Options:
    """Option of one window for all layers."""
    windows = {window for window in config.sliding_windows if window}
    return {"attention.sliding_window": max(windows)} if windows else {}


def _unread_window(config: ModelConfig) -> Options:
    """Option of one window for all layers, which llama.cpp does not read: it is written with a warning."""
    found = _window(config)
    for window in found.values():
        log.warning(
            "llama.cpp attends beyond the window of %d tokens, the original does not", window
        )
    return found


def _phi3(config: ModelConfig) -> Options:
    original = config.rope_scaling.get("original_max_position_embeddings")
    own = {"rope.scaling.original_context_length": original or config.max_position_embeddings}
    return {"attention.sliding_window": 0} | own | _unread_window(config)


def _windows(config: ModelConfig, period: int = 1) -> Options:
    """Options of a window, with the layers that have it unless these are all but every `period`-th."""
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
    """Option of the rotary base of layers with windows."""
    local = config.local_rope
    return {} if local is None else {"rope.freq_base_swa": float(local[0])}


def _gemma3(config: ModelConfig) -> Options:
    cap = {"final_logit_softcapping": float(config.logit_cap)} if config.logit_cap else {}
    return _windows(config, 6) | _local_base(config) | cap


def _olmo3(config: ModelConfig) -> Options:
    return _windows(config) | _local_base(config)


def _cohere(config: ModelConfig) -> Options:
    large = config.num_layers >= _NORMALIZED
    if config.model_type == "cohere" and config.qk_norm != large:
        raise refused("use_qk_norm", large, "command-r", config.qk_norm)
    return {"logit_scale": float(config.logit_scale)}


_NORMALIZED = 64
"""Fewest layers of a Command R for which llama.cpp normalizes queries and keys."""


def _cohere2(config: ModelConfig) -> Options:
    return _cohere(config) | _windows(config, 4)


def _mixtral(config: ModelConfig) -> Options:
    return _unread_window(config) | counts(config)


def _hunyuan_moe(config: ModelConfig) -> Options:
    return qwen2_moe(config) | {"expert_shared_count": 1}


def _deepseek2(config: ModelConfig) -> Options:
    """Options of latent attention as one key head: the latent vector and the rotary part."""
    latent = config.latent
    assert latent is not None
    queries = {"attention.q_lora_rank": latent.query_size} if latent.query_size else {}
    lite = (config.num_layers, config.vocab_size) == _LITE_48 or config.num_layers in _LITE
    if lite == bool(queries):
        kind = f"deepseek2 of {config.num_layers} layers"
        raise refused(
            "q_lora_rank", "none" if lite else "a number", kind, latent.query_size or "none"
        )
    return (
        (_dense(config) if config.mixture is None else sparse(config))
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


_LITE, _LITE_48 = (26, 27), (48, 128256)
"""Numbers of layers, and of layers and tokens, of models that llama.cpp reads without latent queries."""


def _dense(config: ModelConfig) -> Options:
    """Options of a model without experts of an architecture that may have them."""
    return {
        "expert_feed_forward_length": config.intermediate_size,
        "expert_shared_count": 0,
        "leading_dense_block_count": config.num_layers,
    }


def _gpt_oss(config: ModelConfig) -> Options:
    return _windows(config, 2) | qwen3_moe(config)


def _llama4(config: ModelConfig) -> Options:
    assert config.mixture is not None
    layers = config.mixture.layers
    return qwen3_moe(config) | {"interleave_moe_layer_step": layers.index(True) + 1}


def _afmoe(config: ModelConfig) -> Options:
    """Options of AFMoE, whose rotary layers llama.cpp fixes: all but every fourth."""
    rotary = tuple(kind == SLIDING for kind in every(config.num_layers, 4))
    if config.rotary_layers != rotary:
        raise refused("rotary_layers", rotary, "afmoe", config.rotary_layers)
    return sparse(config) | _windows(config, 4)


def _dots1(config: ModelConfig) -> Options:
    _require_own_keys(config, "dots1")
    return sparse(config)


def _ernie4_5_moe(config: ModelConfig) -> Options:
    assert config.mixture is not None
    mixture = config.mixture
    return qwen3_moe(config) | {
        "expert_shared_count": mixture.shared_size // mixture.size,
        "expert_shared_feed_forward_length": mixture.shared_size,
        "interleave_moe_layer_step": 1,
        "leading_dense_block_count": (*mixture.layers, True).index(True),
    }


def _exaone_moe(config: ModelConfig) -> Options:
    assert config.mixture is not None
    shared = config.mixture.shared_size
    if not shared:
        raise refused("num_shared_experts", "a number", "exaone-moe", 0)
    own = {"expert_shared_feed_forward_length": shared}
    return sparse(config) | own | _windows(config, 4)


def _minimax_m2(config: ModelConfig) -> Options:
    return qwen3_moe(config) | {"expert_gating_func": 2}


def _olmoe(config: ModelConfig) -> Options:
    _require_own_keys(config, "olmoe")
    return counts(config)


def _jais2(config: ModelConfig) -> Options:
    _require_own_keys(config, "jais2")
    return {}


def _require_own_keys(config: ModelConfig, architecture: str) -> None:
    """Refuse query heads that share keys."""
    heads, keys = config.num_heads, config.num_kv_heads
    if keys != heads:
        raise refused("num_key_value_heads", heads, architecture, keys)


def _mistral3(config: ModelConfig) -> Options:
    growth = config.query_growth
    return {"attention.temperature_scale": float(growth.rate)} if growth else {}


def _falcon(config: ModelConfig) -> Options:
    if config.variant == "sequential":
        raise refused("parallel_attn", True, "falcon", False)
    return {"tensor_data_layout": "jploski"}  # all queries, then all keys, then all values


def _gptneox(config: ModelConfig) -> Options:
    return {"use_parallel_residual": config.architecture.parallel}


def _phi2(config: ModelConfig) -> Options:
    if config.qk_norm:
        raise refused("qk_layernorm", False, "phi2", True)
    return {}


def _stablelm(config: ModelConfig) -> Options:
    del config
    return {"use_parallel_residual": False}


WRITTEN = {
    "afmoe": Written("afmoe", _afmoe),
    "arcee": Written("arcee", _nothing),
    "cohere": Written("command-r", _cohere),
    "cohere2": Written("cohere2", _cohere2),
    "deepseek_v2": Written("deepseek2", _deepseek2),
    "deepseek_v3": Written("deepseek2", _deepseek2),
    "dots1": Written("dots1", _dots1),
    "ernie4_5": Written("ernie4_5", _nothing),
    "ernie4_5_moe": Written("ernie4_5-moe", _ernie4_5_moe),
    "exaone": Written("exaone", _nothing),
    "exaone4": Written("exaone4", _windows),
    "exaone_moe": Written("exaone-moe", _exaone_moe),
    "falcon": Written("falcon", _falcon),
    "gemma": Written("gemma", _nothing),
    "gemma2": Written("gemma2", _gemma2),
    "gemma3_text": Written("gemma3", _gemma3),
    "gemma4_text": Written("gemma4", gemma4),
    "gemma4_unified_text": Written("gemma4", gemma4),
    "glm": Written("chatglm", _nothing),
    "glm4": Written("glm4", _nothing),
    "glm4v_text": Written("glm4", _nothing),
    "glm4_moe": Written("glm4moe", sparse),
    "glm4_moe_lite": Written("deepseek2", _deepseek2),
    "gpt2": Written("gpt2", _nothing),
    "gpt_bigcode": Written("starcoder", _nothing),
    "gpt_neox": Written("gptneox", _gptneox),
    "gpt_oss": Written("gpt-oss", _gpt_oss),
    "granite": Written("granite", granite),
    "granitemoe": Written("granitemoe", granitemoe),
    "granitemoehybrid": Written("granitehybrid", granite4, granite4_variant),
    "granitemoeshared": Written("granitemoe", granitemoeshared),
    "hunyuan_v1_dense": Written("hunyuan-dense", _nothing),
    "hunyuan_v1_moe": Written("hunyuan-moe", _hunyuan_moe),
    "internlm3": Written("llama", _nothing),
    "jais2": Written("jais2", _jais2),
    "kimi_k2": Written("deepseek2", _deepseek2),
    "lfm2": Written("lfm2", lfm2),
    "lfm2_moe": Written("lfm2moe", lfm2_moe),
    "llama": Written("llama", _nothing),
    "llama4_text": Written("llama4", _llama4),
    "minimax_m2": Written("minimax-m2", _minimax_m2),
    "ministral3": Written("mistral3", _mistral3),
    "mistral": Written("llama", _unread_window),
    "mixtral": Written("llama", _mixtral),
    "nemotron": Written("nemotron", _nothing),
    "nemotron_h": Written("nemotron_h", nemotron_h, nemotron_h_variant),
    "olmo2": Written("olmo2", _nothing),
    "olmo3": Written("olmo2", _olmo3),
    "olmoe": Written("olmoe", _olmoe),
    "phi": Written("phi2", _phi2),
    "phi3": Written("phi3", _phi3),
    "qwen2": Written("qwen2", _nothing),
    "qwen2_5_vl_text": Written("qwen2vl", _nothing),
    "qwen2_moe": Written("qwen2moe", qwen2_moe),
    "qwen2_vl_text": Written("qwen2vl", _nothing),
    "qwen3": Written("qwen3", _nothing),
    "qwen3_5_moe_text": Written("qwen35moe", delta_net),
    "qwen3_5_text": Written("qwen35", delta_net),
    "qwen3_moe": Written("qwen3moe", qwen3_moe),
    "qwen3_next": Written("qwen3next", delta_net),
    "qwen3_vl_moe_text": Written("qwen3vlmoe", qwen3_moe),
    "qwen3_vl_text": Written("qwen3vl", _nothing),
    "seed_oss": Written("seed_oss", _nothing),
    "smollm3": Written("smollm3", _nothing),
    "solar_open": Written("glm4moe", sparse),
    "stablelm": Written("stablelm", _stablelm),
    "starcoder2": Written("starcoder2", _nothing),
    "youtu": Written("deepseek2", _deepseek2),
}
"""By Hugging Face's ``model_type``."""
