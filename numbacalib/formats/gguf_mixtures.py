"""Options of experts in GGUF files: see `numbacalib.formats.gguf_options`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numbacalib.models.config import ModelConfig

__all__ = ["counts", "qwen2_moe", "qwen3_moe", "sparse", "weighed"]

Options = dict[str, Any]


def counts(config: ModelConfig) -> Options:
    """Counts of experts, and of those used per token."""
    mixture = config.mixture
    if mixture is None:
        return {}
    return {"expert_count": mixture.experts, "expert_used_count": mixture.routing.experts}


def qwen3_moe(config: ModelConfig) -> Options:
    assert config.mixture is not None
    return counts(config) | {"expert_feed_forward_length": config.mixture.size}


def qwen2_moe(config: ModelConfig) -> Options:
    assert config.mixture is not None
    shared = {"expert_shared_feed_forward_length": config.mixture.shared_size}
    return qwen3_moe(config) | shared


def sparse(config: ModelConfig) -> Options:
    """Options of experts after a few dense layers, with shared experts for all tokens."""
    mixture = config.mixture
    assert mixture is not None
    if not any(mixture.layers):
        raise ValueError("first_k_dense_replace: expected experts in a layer of a GGUF, got none")
    return weighed(config) | {
        "expert_shared_count": mixture.shared_size // mixture.size,
        "leading_dense_block_count": mixture.layers.index(True),
    }


def weighed(config: ModelConfig) -> Options:
    """Options of experts, and of the groups and weights of their router."""
    assert config.mixture is not None
    mixture, routing = config.mixture, config.mixture.routing
    found = {
        "expert_gating_func": 2 if routing.scoring == "sigmoid" else 1,
        "expert_weights_norm": routing.normalized,
        "expert_weights_scale": float(routing.factor),
    }
    if 1 < routing.groups <= routing.kept_groups or mixture.experts <= routing.groups > 1:
        raise ValueError(
            f"n_group: expected more than topk_group {routing.kept_groups} and less than "
            f"{mixture.experts} experts in GGUF, got {routing.groups}"
        )
    if mixture.experts > 1:
        found["expert_group_count"] = routing.groups
        found["expert_group_used_count"] = routing.kept_groups
    return qwen3_moe(config) | found
