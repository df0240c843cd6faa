"""Metadata keys and row orders of each architecture's GGUF files, beyond the common ones.

Sources: llama.cpp's ``src/models`` (keys that are read, and their defaults) and ``conversion`` (keys that
are written), https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from numbacalib.models import gguf_granite, gguf_hybrids, gguf_mixtures
from numbacalib.models.gguf_metadata import Metadata
from numbacalib.models.gguf_windows import (
    ORIGINAL_LENGTH,
    PATTERN,
    SECTIONS,
    WINDOW,
    Config,
    rope_parameters,
    sections,
    windows,
)
from numbacalib.models.windows import FULL

__all__ = ["GGUF_ARCHITECTURES", "GGUFArchitecture"]


def _nothing(options: Metadata, config: Config) -> Config:
    del options, config
    return {}


class GGUFArchitecture(NamedTuple):
    """One architecture in GGUF files."""

    model_type: str
    """Hugging Face's, unless `variant` returns another."""
    paired: bool = False
    """True if rows of queries and keys are ordered for interleaved rotary embedding."""
    layer_norm: bool = False
    keys: tuple[str, ...] = ()
    """Further keys that `read` and `variant` read."""
    read: Callable[[Metadata, Config], Config] = _nothing
    """From the file's options and the configuration so far to further keys of it."""
    variant: Callable[[Metadata], str] | None = None
    """From the file's options to Hugging Face's ``model_type``, if there are several."""

    def type_of(self, options: Metadata) -> str:
        """Return Hugging Face's ``model_type`` of a file with these options."""
        return self.model_type if self.variant is None else self.variant(options)


def _llama_variant(options: Metadata) -> str:
    """Mistral is also "llama" in GGUF, told apart by its window, and Mixtral by its experts."""
    if options.integer("expert_count", 0):
        return "mixtral"
    return "mistral" if options.integer(WINDOW, 0) else "llama"


def _llama(options: Metadata, config: Config) -> Config:
    window = options.integer(WINDOW, 0)
    if config["model_type"] == "mixtral":
        return {"sliding_window": window or None} | gguf_mixtures.counts(
            options, "num_local_experts"
        )
    if window:
        return {"sliding_window": window, "use_sliding_window": True}
    return {"use_sliding_window": False}


def _mistral3(options: Metadata, config: Config) -> Config:
    """Queries grow with their position relative to the context length before scaling."""
    growth = {
        "attention.temperature_scale": options.number("attention.temperature_scale", 0.0),
        ORIGINAL_LENGTH: options.integer(ORIGINAL_LENGTH, 0),
    }
    for key, value in growth.items():
        if not value:
            raise options.error(key, "a growth of queries with YaRN")
    beta, original = growth.values()
    found = {"llama_4_scaling_beta": beta, "original_max_position_embeddings": original}
    return {"rope_parameters": rope_parameters(config)["rope_parameters"] | found}


def _glm4_variant(options: Metadata) -> str:
    """The decoder of a vision model has M-RoPE sections."""
    return "glm4v_text" if options.is_list(SECTIONS) else "glm4"


def _glm4(options: Metadata, config: Config) -> Config:
    return sections(options, config) if config["model_type"] == "glm4v_text" else {}


def _falcon(options: Metadata, config: Config) -> Config:
    """GGUF files have the second version's key heads for all; models of the first version have one."""
    whole = config["hidden_size"] // config["num_attention_heads"]
    if config.pop("head_dim") != whole:  # read-only in transformers' configuration
        raise options.error("attention.key_length", f"{whole}, a head's share of embedding_length")
    return {"new_decoder_architecture": True, "parallel_attn": True}


def _gptneox(options: Metadata, config: Config) -> Config:
    del config
    return {"use_parallel_residual": options.boolean("use_parallel_residual", True)}


def _gemma(options: Metadata, config: Config, largest: int, default: int, period: int) -> Config:
    """Scores are scaled by the head's length, except in the largest model, known by its layer count."""
    head = config["head_dim"]
    if config["num_hidden_layers"] == largest:
        head = config["hidden_size"] // config["num_attention_heads"]
    caps = {
        "final_logit_softcapping": options.number("final_logit_softcapping", 0.0) or None,
        "query_pre_attn_scalar": head,
    }
    return windows(options, config, default, period) | caps


def _gemma2(options: Metadata, config: Config) -> Config:
    found = _gemma(options, config, 46, 4096, 2)
    cap = options.number("attn_logit_softcapping", 50.0)
    final = options.number("final_logit_softcapping", 30.0)
    return found | {"attn_logit_softcapping": cap, "final_logit_softcapping": final}


def _gemma3(options: Metadata, config: Config) -> Config:
    base = options.number("rope.freq_base_swa", 1e4)
    return _gemma(options, config, 62, 0, 6) | {"rope_local_base_freq": base}


def _phi3(options: Metadata, config: Config) -> Config:
    del config
    return {"sliding_window": options.integer(WINDOW, 0) or None}


def _olmo_variant(options: Metadata) -> str:
    """OLMo 3 is also "olmo2" in GGUF, told apart by its windows."""
    return "olmo3" if options.integer(WINDOW, 0) else "olmo2"


def _olmo(options: Metadata, config: Config) -> Config:
    if config["model_type"] == "olmo2":
        return {}
    base = options.number("rope.freq_base_swa", config["rope_theta"])
    return windows(options, config, 0, 4) | {"rope_local_base_freq": base}


def _cohere(options: Metadata, config: Config) -> Config:
    del config
    return {"logit_scale": options.number("logit_scale", 1.0)}


def _cohere2(options: Metadata, config: Config) -> Config:
    return _cohere(options, config) | windows(options, config, 0, 4)


def _exaone4(options: Metadata, config: Config) -> Config:
    """Only the largest model has windows."""
    if config["num_hidden_layers"] != 64:
        return {"sliding_window": None, "layer_types": [FULL] * config["num_hidden_layers"]}
    return windows(options, config, 4096, 4)


_WINDOWS = (WINDOW, PATTERN)
_EXPERTS = ("expert_count", "expert_used_count")
_SHARED_EXPERT = (
    *_EXPERTS,
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
)
_SPARSE = (
    *(*_EXPERTS, "expert_feed_forward_length", "expert_shared_count", "expert_gating_func"),
    *("leading_dense_block_count", "expert_weights_norm", "expert_weights_scale"),
    *("expert_group_count", "expert_group_used_count"),
)
_LATENT = (
    *("attention.q_lora_rank", "attention.kv_lora_rank"),
    *("attention.key_length_mla", "attention.value_length_mla"),
)
GGUF_ARCHITECTURES = {
    "afmoe": GGUFArchitecture("afmoe", keys=(*_SPARSE, *_WINDOWS), read=gguf_mixtures.afmoe),
    "arcee": GGUFArchitecture("arcee", paired=True),
    "chatglm": GGUFArchitecture("glm"),
    "cohere2": GGUFArchitecture(
        "cohere2", layer_norm=True, keys=("logit_scale", *_WINDOWS), read=_cohere2
    ),
    "command-r": GGUFArchitecture("cohere", layer_norm=True, keys=("logit_scale",), read=_cohere),
    "deepseek2": GGUFArchitecture(
        "deepseek_v3",
        keys=(*_SPARSE, *_LATENT),
        read=gguf_mixtures.deepseek2,
        variant=gguf_mixtures.latent_variant,
    ),
    "dots1": GGUFArchitecture("dots1", keys=_SPARSE, read=gguf_mixtures.dots1),
    "ernie4_5": GGUFArchitecture("ernie4_5"),
    "ernie4_5-moe": GGUFArchitecture(
        "ernie4_5_moe",
        keys=(*_SPARSE, "expert_shared_feed_forward_length", "interleave_moe_layer_step"),
        read=gguf_mixtures.ernie4_5_moe,
    ),
    "exaone": GGUFArchitecture("exaone"),
    "exaone-moe": GGUFArchitecture(
        "exaone_moe",
        keys=(*_SPARSE, *_WINDOWS, "expert_shared_feed_forward_length"),
        read=gguf_mixtures.exaone_moe,
    ),
    "exaone4": GGUFArchitecture("exaone4", keys=_WINDOWS, read=_exaone4),
    "falcon": GGUFArchitecture("falcon", layer_norm=True, read=_falcon),
    "gemma": GGUFArchitecture("gemma"),
    "gemma2": GGUFArchitecture(
        "gemma2",
        keys=(*_WINDOWS, "attn_logit_softcapping", "final_logit_softcapping"),
        read=_gemma2,
    ),
    "gemma3": GGUFArchitecture(
        "gemma3_text",
        keys=(*_WINDOWS, "rope.freq_base_swa", "final_logit_softcapping"),
        read=_gemma3,
    ),
    "gemma4": GGUFArchitecture(
        "gemma4_text", keys=(*_WINDOWS, *gguf_hybrids.GEMMA4_KEYS), read=gguf_hybrids.gemma4
    ),
    "glm4": GGUFArchitecture("glm4", keys=(SECTIONS,), read=_glm4, variant=_glm4_variant),
    "glm4moe": GGUFArchitecture(
        "glm4_moe",
        keys=_SPARSE,
        read=gguf_mixtures.glm4_moe,
    ),
    "gpt-oss": GGUFArchitecture(
        "gpt_oss",
        keys=(*_EXPERTS, *_WINDOWS, "expert_feed_forward_length"),
        read=gguf_mixtures.gpt_oss,
    ),
    "gpt2": GGUFArchitecture("gpt2", layer_norm=True),
    "gptneox": GGUFArchitecture(
        "gpt_neox", layer_norm=True, keys=("use_parallel_residual",), read=_gptneox
    ),
    "granite": GGUFArchitecture(
        "granite",
        paired=True,
        keys=(
            *gguf_granite.FACTORS,
            "expert_shared_feed_forward_length",
            *gguf_hybrids.STATE_SPACE_KEYS,
        ),
        read=gguf_granite.granite,
        variant=gguf_granite.granite_variant,
    ),
    "granitehybrid": GGUFArchitecture(
        "granitemoehybrid",
        paired=True,
        keys=(
            *(*gguf_granite.FACTORS, *_EXPERTS, "expert_shared_feed_forward_length"),
            *gguf_hybrids.STATE_SPACE_KEYS,
        ),
        read=gguf_granite.granitehybrid,
    ),
    "granitemoe": GGUFArchitecture(
        "granitemoe",
        paired=True,
        keys=(*gguf_granite.FACTORS, *_EXPERTS, "expert_shared_feed_forward_length"),
        read=gguf_granite.granitemoe,
        variant=gguf_granite.granitemoe_variant,
    ),
    "hunyuan-dense": GGUFArchitecture("hunyuan_v1_dense"),
    "hunyuan-moe": GGUFArchitecture(
        "hunyuan_v1_moe",
        keys=(*_SHARED_EXPERT, "expert_shared_count"),
        read=gguf_mixtures.hunyuan_moe,
    ),
    "jais2": GGUFArchitecture("jais2", layer_norm=True),
    "lfm2": GGUFArchitecture("lfm2", keys=gguf_hybrids.CONVOLUTION_KEYS, read=gguf_hybrids.lfm2),
    "lfm2moe": GGUFArchitecture(
        "lfm2_moe",
        keys=(
            *(*gguf_hybrids.CONVOLUTION_KEYS, *_EXPERTS, "expert_feed_forward_length"),
            *("leading_dense_block_count", "expert_gating_func"),
        ),
        read=gguf_hybrids.lfm2_moe,
    ),
    "llama": GGUFArchitecture(
        "llama", paired=True, keys=(WINDOW, *_EXPERTS), read=_llama, variant=_llama_variant
    ),
    "llama4": GGUFArchitecture(
        "llama4_text",
        keys=(*_EXPERTS, WINDOW, "expert_feed_forward_length", "interleave_moe_layer_step"),
        read=gguf_mixtures.llama4,
    ),
    "minimax-m2": GGUFArchitecture(
        "minimax_m2",
        keys=(*_EXPERTS, "expert_feed_forward_length", "expert_gating_func"),
        read=gguf_mixtures.minimax_m2,
    ),
    "mistral3": GGUFArchitecture(
        "ministral3", paired=True, keys=("attention.temperature_scale",), read=_mistral3
    ),
    "nemotron": GGUFArchitecture("nemotron", layer_norm=True),
    "nemotron_h": GGUFArchitecture(
        "nemotron_h",
        paired=True,
        keys=gguf_hybrids.STATE_SPACE_KEYS,
        read=gguf_hybrids.nemotron_h,
    ),
    "nemotron_h_moe": GGUFArchitecture(
        "nemotron_h",
        paired=True,
        keys=(
            *(*_SPARSE, *gguf_hybrids.STATE_SPACE_KEYS),
            *("expert_shared_feed_forward_length", "moe_latent_size"),
        ),
        read=gguf_hybrids.nemotron_h_moe,
    ),
    "olmo2": GGUFArchitecture(
        "olmo2", keys=(*_WINDOWS, "rope.freq_base_swa"), read=_olmo, variant=_olmo_variant
    ),
    "olmoe": GGUFArchitecture("olmoe", keys=_EXPERTS, read=gguf_mixtures.olmoe),
    "phi2": GGUFArchitecture("phi", layer_norm=True),
    "phi3": GGUFArchitecture("phi3", keys=(WINDOW,), read=_phi3),
    "qwen2": GGUFArchitecture("qwen2"),
    "qwen2moe": GGUFArchitecture(
        "qwen2_moe",
        keys=_SHARED_EXPERT,
        read=gguf_mixtures.qwen2_moe,
    ),
    "qwen2vl": GGUFArchitecture("qwen2_vl_text", keys=(SECTIONS,), read=sections),
    "qwen3": GGUFArchitecture("qwen3"),
    "qwen3moe": GGUFArchitecture(
        "qwen3_moe", keys=(*_EXPERTS, "expert_feed_forward_length"), read=gguf_mixtures.qwen3_moe
    ),
    "qwen35": GGUFArchitecture(
        "qwen3_5_text", keys=(SECTIONS, *gguf_hybrids.DELTA_KEYS), read=gguf_hybrids.qwen35
    ),
    "qwen35moe": GGUFArchitecture(
        "qwen3_5_moe_text",
        keys=(SECTIONS, *_SHARED_EXPERT, *gguf_hybrids.DELTA_KEYS),
        read=gguf_hybrids.qwen35_moe,
    ),
    "qwen3next": GGUFArchitecture(
        "qwen3_next",
        keys=(*_SHARED_EXPERT, *gguf_hybrids.DELTA_KEYS),
        read=gguf_hybrids.qwen3_next,
    ),
    "qwen3vl": GGUFArchitecture(
        "qwen3_vl_text", keys=(SECTIONS, "n_deepstack_layers"), read=sections
    ),
    "qwen3vlmoe": GGUFArchitecture(
        "qwen3_vl_moe_text",
        keys=(*_EXPERTS, SECTIONS, "expert_feed_forward_length", "n_deepstack_layers"),
        read=gguf_mixtures.qwen3_vl_moe,
    ),
    "seed_oss": GGUFArchitecture("seed_oss"),
    "smollm3": GGUFArchitecture("smollm3", paired=True),
    "stablelm": GGUFArchitecture("stablelm", layer_norm=True),
    "starcoder": GGUFArchitecture("gpt_bigcode", layer_norm=True),
    "starcoder2": GGUFArchitecture("starcoder2", layer_norm=True),
}
"""By ``general.architecture``."""
