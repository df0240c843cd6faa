"""Options of GGUF files of decoders with layers of two kinds: see `numbacalib.formats.gguf_options`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from numbacalib.formats.gguf_limits import refused
from numbacalib.models.gguf_architectures import GGUF_ARCHITECTURES
from numbacalib.models.gguf_layouts import column_tiles

if TYPE_CHECKING:
    from numbacalib.models.config import ModelConfig

__all__ = ["delta_net", "gemma4"]

Options = dict[str, Any]
_BLOCK = 32
"""Numbers of GGML's smallest block, which must not cross a head."""


def delta_net(config: ModelConfig) -> Options:
    """Sizes of a gated delta net, and of experts, if any: in all layers."""
    delta, names = config.delta, config.architecture.delta
    assert delta is not None
    assert names is not None
    architecture = next(
        name for name, own in GGUF_ARCHITECTURES.items() if own.model_type == config.model_type
    )
    if delta.value_dim != delta.key_dim:
        raise refused("linear_value_head_dim", delta.key_dim, architecture, delta.value_dim)
    output = f"model.layers.0.{names.linears['output']}.weight"
    if column_tiles(config, output) and delta.value_dim % _BLOCK:
        expected = f"a multiple of {_BLOCK}"
        raise refused("linear_value_head_dim", expected, architecture, delta.value_dim)
    period = (*delta.layers, False).index(False) + 1
    if delta.layers != tuple((index + 1) % period != 0 for index in range(config.num_layers)):
        raise refused("layer_types", "attention in every so many layers", architecture, "others")
    return _mixture(config, architecture) | {
        "ssm.conv_kernel": delta.taps,
        "ssm.group_count": delta.key_heads,
        "ssm.inner_size": delta.values,
        "ssm.state_size": delta.key_dim,
        "ssm.time_step_rank": delta.value_heads,
        "full_attention_interval": period,
    }


def _mixture(config: ModelConfig, architecture: str) -> Options:
    mixture = config.mixture
    if mixture is None:
        return {}
    if not all(mixture.layers):
        raise refused("mlp_only_layers", "none", architecture, "some")
    if not mixture.routing.normalized:
        raise refused("norm_topk_prob", True, architecture, False)
    return {
        "expert_count": mixture.experts,
        "expert_used_count": mixture.routing.experts,
        "expert_feed_forward_length": mixture.size,
        "expert_shared_feed_forward_length": mixture.shared_size,
    }


def gemma4(config: ModelConfig) -> Options:
    """Options of two kinds of heads, layers with shared keys, per-layer token vectors and experts."""
    assert config.global_heads is not None
    assert config.local_rope is not None
    count = config.num_layers
    flags = [window is not None for window in config.sliding_windows]
    (_, full), local = config.global_heads, config.head_dim
    return {
        "attention.head_count_kv": _by_layer([config.heads_of(index)[0] for index in range(count)]),
        "attention.key_length": full,
        "attention.value_length": full,
        "attention.key_length_swa": local,
        "attention.value_length_swa": local,
        "attention.sliding_window": max(filter(None, config.sliding_windows)),
        "attention.sliding_window_pattern": np.array(flags),
        "attention.shared_kv_layers": _borrowing(config, flags),
        "embedding_length_per_layer_input": config.layer_input_size,
        "feed_forward_length": _by_layer([config.mlp_size(index) for index in range(count)]),
        "final_logit_softcapping": float(config.logit_cap),
        "rope.dimension_count": full,
        "rope.dimension_count_swa": local,
        "rope.freq_base_swa": float(config.local_rope[0]),
    } | _gemma4_mixture(config)


def _gemma4_mixture(config: ModelConfig) -> Options:
    mixture = config.mixture
    if mixture is None:
        return {}
    return {
        "expert_count": mixture.experts,
        "expert_used_count": mixture.routing.experts,
        "expert_feed_forward_length": mixture.size,
    }


def _by_layer(numbers: list[int]) -> Any:
    """Return one number if all layers have the same, else an array."""
    return numbers[0] if len(set(numbers)) == 1 else np.array(numbers, np.int32)


def _borrowing(config: ModelConfig, flags: list[bool]) -> int:
    """Count the last layers, which attend to keys of the two layers before them that llama.cpp fixes."""
    shared = sum(source is not None for source in config.key_sources)
    first = config.num_layers - shared
    if shared and (first < 2 or not flags[first - 2] or flags[first - 1]):
        expected = "a layer with a window and one without right before those that share"
        raise refused("num_kv_shared_layers", expected, "gemma4", shared)
    return shared
