"""Options of GGUF files of decoders with layers of two kinds: see `numbacalib.formats.gguf_options`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from numbacalib.formats.gguf_limits import refused
from numbacalib.formats.gguf_mixtures import weighed
from numbacalib.models.gguf_architectures import GGUF_ARCHITECTURES
from numbacalib.models.gguf_layouts import column_tiles

if TYPE_CHECKING:
    from numbacalib.models.config import ModelConfig

__all__ = ["delta_net", "gemma4", "lfm2", "lfm2_moe", "nemotron_h", "nemotron_h_variant"]
__all__ += ["state_space"]

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


def _kv_heads(config: ModelConfig, architecture: str) -> Options:
    """Return key/value heads per block, 0 without attention; llama.cpp fails if no block has any."""
    heads = [
        config.heads_of(index)[0] if config.attends(index) and config.has(index, "attention") else 0
        for index in range(config.num_layers)
    ]
    if not any(heads):
        raise refused("layer_types", "attention in some layers", architecture, "none")
    return {"attention.head_count_kv": np.array(heads, np.int32)}


def lfm2(config: ModelConfig) -> Options:
    """Options of short convolutions, in blocks without key/value heads."""
    convolution, architecture = config.convolution, config.model_type.replace("_", "")
    assert convolution is not None
    if not any(convolution.layers):
        raise refused("layer_types", "convolutions in some layers", architecture, "none")
    if convolution.taps < 2:
        raise refused("conv_L_cache", "at least 2", architecture, convolution.taps)
    return _kv_heads(config, architecture) | {"shortconv.l_cache": convolution.taps}


def lfm2_moe(config: ModelConfig) -> Options:
    """Options of `lfm2`, and of experts after a few dense layers."""
    mixture = config.mixture
    assert mixture is not None
    return lfm2(config) | {
        "expert_count": mixture.experts,
        "expert_used_count": mixture.routing.experts,
        "expert_feed_forward_length": mixture.size,
        "expert_gating_func": 2,
        "leading_dense_block_count": (*mixture.layers, True).index(True),
    }


def state_space(config: ModelConfig, architecture: str) -> Options:
    """Sizes of Mamba 2, in blocks without key/value heads."""
    space = config.state_space
    if space is None:
        raise refused("layer_types", "Mamba 2 in some layers", architecture, "none")
    if not space.convolution_bias:
        raise refused("bias of the convolution", True, architecture, False)
    return _kv_heads(config, architecture) | {
        "ssm.conv_kernel": space.taps,
        "ssm.group_count": space.groups,
        "ssm.inner_size": space.values,
        "ssm.state_size": space.key_dim,
        "ssm.time_step_rank": space.heads,
    }


def nemotron_h_variant(config: ModelConfig) -> str:
    """Return the architecture, which is another one with experts."""
    return "nemotron_h" if config.mixture is None else "nemotron_h_moe"


def nemotron_h(config: ModelConfig) -> Options:
    """Options of Mamba 2, and widths per block: all of MLPs or all of experts, 0 in other blocks."""
    mixture, architecture = config.mixture, nemotron_h_variant(config)
    wide = [config.has(index, "mlp") for index in range(config.num_layers)]
    width = config.intermediate_size if mixture is None else mixture.size
    options = state_space(config, architecture) | {
        "attention.layer_norm_epsilon": float(config.rms_norm_eps),  # required as well
        "feed_forward_length": np.array([width * own for own in wide], np.int32),
    }
    if mixture is None:
        return options
    if tuple(wide) != mixture.layers:
        raise refused("layer_types", "experts in place of each MLP", architecture, "dense MLPs")
    latent = {"moe_latent_size": mixture.latent_size} if mixture.latent_size else {}
    shared = {"expert_shared_count": 1, "expert_shared_feed_forward_length": mixture.shared_size}
    return weighed(config) | options | latent | shared
