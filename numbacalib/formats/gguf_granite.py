"""Options of GGUF files of Granite: see `numbacalib.formats.gguf_options`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numbacalib.formats.gguf_hybrids import state_space
from numbacalib.formats.gguf_limits import refused
from numbacalib.formats.gguf_mixtures import counts

if TYPE_CHECKING:
    from numbacalib.models.config import ModelConfig

__all__ = ["granite", "granite4", "granite4_variant", "granitemoe", "granitemoeshared"]

Options = dict[str, Any]


def granite(config: ModelConfig) -> Options:
    scale = config.attention_scale
    return {
        "attention.scale": config.head_dim**-0.5 if scale is None else float(scale),
        "embedding_scale": float(config.embedding_scale),
        "residual_scale": float(config.residual_scale),
        "logit_scale": 1 / config.logit_scale,
    }


def granitemoe(config: ModelConfig) -> Options:
    return granite(config) | counts(config)


def granitemoeshared(config: ModelConfig) -> Options:
    """The shared expert has its own width."""
    assert config.mixture is not None
    return granitemoe(config) | {"expert_shared_feed_forward_length": config.mixture.shared_size}


def granite4_variant(config: ModelConfig) -> str:
    """Return the architecture: without Mamba 2 an older one, which always has rotary embedding."""
    if config.state_space is not None:
        return "granitehybrid"
    return "granite" if config.mixture is None else "granitemoe"


def granite4(config: ModelConfig) -> Options:
    """Mamba 2 must be twice as wide as the residual stream; rotary embedding is optional."""
    if config.state_space is None:
        shared = {"expert_shared_feed_forward_length": config.intermediate_size}
        return granite(config) | shared if config.mixture is None else granitemoeshared(config)
    found = state_space(config, "granitehybrid")
    inner, hidden = found["ssm.inner_size"], config.hidden_size
    if inner != 2 * hidden:
        raise refused("mamba_expand", 2, "granitehybrid", inner // hidden)
    found["rope.scaling.finetuned"] = all(config.rotary_layers)
    return (granite(config) if config.mixture is None else granitemoeshared(config)) | found
