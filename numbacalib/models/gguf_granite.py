"""Conversion of GGUF options of Granite to configuration keys.

Source: llama.cpp's ``src/models`` (granite, granite-moe, granite-hybrid),
https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from numbacalib.models.gguf_hybrids import granite_state_space
from numbacalib.models.gguf_metadata import Metadata
from numbacalib.models.gguf_mixtures import counts
from numbacalib.models.gguf_windows import Config

__all__ = ["FACTORS", "granite", "granite_variant", "granitehybrid"]
__all__ += ["granitemoe", "granitemoe_variant"]

FACTORS = ("logit_scale", "residual_scale", "embedding_scale", "attention.scale")
"""Keys of all Granite models."""
_SHARED = "expert_shared_feed_forward_length"


def granite_variant(options: Metadata) -> str:
    """Granite 4 without Mamba 2 is also "granite" in GGUF, told apart by a shared expert's width."""
    return "granitemoehybrid" if options.integer(_SHARED, 0) else "granite"


def granite(options: Metadata, config: Config) -> Config:
    found = _factors_with_rope(options)
    if config["model_type"] == "granite":
        return found
    own = {"layer_types": ["attention"] * config["num_hidden_layers"]}
    return found | own | _without_experts(config) | {"position_embedding_type": "rope"}


def granitemoe_variant(options: Metadata) -> str:
    return "granitemoeshared" if options.integer(_SHARED, 0) else "granitemoe"


def granitemoe(options: Metadata, config: Config) -> Config:
    del config
    found = _factors_with_rope(options) | counts(options, "num_local_experts")
    shared = options.integer(_SHARED, 0)
    return found | ({"shared_intermediate_size": shared} if shared else {})


def granitehybrid(options: Metadata, config: Config) -> Config:
    """Without experts, the layers of the shared expert are the MLP and have its width."""
    turns = options.boolean("rope.scaling.finetuned", True)
    found = _factors(options) | granite_state_space(options, config)
    found["position_embedding_type"] = "rope" if turns else "nope"
    if not options.integer("expert_count", 0):
        return found | _without_experts(config)
    shared = {"shared_intermediate_size": options.required(_SHARED)}
    return found | counts(options, "num_local_experts") | shared


def _factors_with_rope(options: Metadata) -> Config:
    """Return the factors of a model that must have rotary embedding."""
    if not options.boolean("rope.scaling.finetuned", True):
        raise options.error("rope.scaling.finetuned", "true: NoPE models are not supported")
    return _factors(options)


def _factors(options: Metadata) -> Config:
    """Return Granite's factors of scores, logits, the residual stream and embeddings."""
    head = {"attention_multiplier": options.number("attention.scale", 0.0)}
    return {
        "logits_scaling": options.number("logit_scale", 1.0),
        "residual_multiplier": options.number("residual_scale", 0.0) or 1.0,
        "embedding_multiplier": options.number("embedding_scale", 0.0) or 1.0,
    } | {key: value for key, value in head.items() if value}


def _without_experts(config: Config) -> Config:
    """Return the keys of a Granite 4 without experts."""
    shared = {"shared_intermediate_size": config["intermediate_size"]}
    return {"num_local_experts": 0, "num_experts_per_tok": 0} | shared
