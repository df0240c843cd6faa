"""Conversion of GGUF options to configuration keys, for decoders with two kinds of layers.

Source: llama.cpp's ``src/models`` (qwen3next, qwen35, qwen35moe, gemma4, lfm2, lfm2moe, granite-hybrid,
nemotron-h), https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from numbacalib.models.gguf_metadata import Metadata
from numbacalib.models.gguf_mixtures import counts, experts_behind_dense_layers, qwen3_moe, sigmoid
from numbacalib.models.gguf_windows import PATTERN, Config, sections, windows
from numbacalib.models.windows import FULL

__all__ = [
    "CONVOLUTION_KEYS",
    "DELTA_KEYS",
    "GEMMA4_KEYS",
    "STATE_SPACE_KEYS",
    "by_block",
    "gemma4",
]
__all__ += ["granite_state_space", "lfm2", "lfm2_moe", "nemotron_h", "nemotron_h_moe"]
__all__ += ["qwen3_next", "qwen35", "qwen35_moe"]

_SHARED = "expert_shared_feed_forward_length"
_LENDING = "attention.shared_kv_layers"
_RECURRENT = "attention.recurrent_layers"
_HEADS = "attention.head_count_kv"
CONVOLUTION_KEYS = ("shortconv.l_cache",)
"""Keys of short convolutions."""
STATE_SPACE_KEYS = (
    *("ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.time_step_rank"),
    "ssm.group_count",
)
"""Keys of layers of Mamba 2."""
DELTA_KEYS = (*STATE_SPACE_KEYS, "full_attention_interval", _RECURRENT)
"""Keys of gated delta nets."""
GEMMA4_KEYS = (
    *("attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa"),
    *("rope.freq_base_swa", _LENDING, "embedding_length_per_layer_input"),
    *("expert_count", "expert_used_count", "expert_feed_forward_length", "final_logit_softcapping"),
)


def _delta_net(options: Metadata, config: Config) -> Config:
    """Return the sizes and layers of a gated delta net: all layers but every n-th."""
    count, values = config["num_hidden_layers"], options.required("ssm.time_step_rank")
    inner, size = options.required("ssm.inner_size"), options.required("ssm.state_size")
    if inner != values * size:
        raise options.error(
            "ssm.inner_size", f"ssm.time_step_rank times ssm.state_size, {values * size}"
        )
    period = options.integer("full_attention_interval", 4)
    if period < 1:
        raise options.error("full_attention_interval", "a positive number")
    linear = [(index + 1) % period != 0 for index in range(count)]
    if options.is_list(_RECURRENT):
        linear = options.flags(_RECURRENT)
    if len(linear) != count:
        raise options.error(_RECURRENT, f"a flag for each of {count} blocks")
    return {
        "layer_types": ["linear_attention" if each else FULL for each in linear],
        "linear_num_key_heads": options.required("ssm.group_count"),
        "linear_num_value_heads": values,
        "linear_key_head_dim": size,
        "linear_value_head_dim": size,
        "linear_conv_kernel_dim": options.required("ssm.conv_kernel"),
    }


def qwen3_next(options: Metadata, config: Config) -> Config:
    own = {"shared_expert_intermediate_size": options.required(_SHARED)}
    return qwen3_moe(options, config) | own | _delta_net(options, config)


def qwen35(options: Metadata, config: Config) -> Config:
    return sections(options, config) | _delta_net(options, config)


def qwen35_moe(options: Metadata, config: Config) -> Config:
    return qwen3_next(options, config) | sections(options, config)


def gemma4(options: Metadata, config: Config) -> Config:
    """Layers without windows have their own head sizes; the last layers may share keys of earlier ones."""
    count = config["num_hidden_layers"]
    found = windows(options, config, 0, 6)
    kinds = found["layer_types"]
    if FULL not in kinds or len(set(kinds)) < 2 or kinds[-1] != FULL:
        raise options.error(PATTERN, "blocks with and without windows, the last one without")
    found |= {
        "rope_local_base_freq": options.number("rope.freq_base_swa", 1e4),
        "hidden_size_per_layer_input": options.integer("embedding_length_per_layer_input", 0),
        "vocab_size_per_layer_input": config["vocab_size"],
        "final_logit_softcapping": options.number("final_logit_softcapping", 0.0) or None,
    }
    found |= _gemma4_heads(options, config, kinds) | _gemma4_sharing(options, count, kinds)
    if options.integer("expert_count", 0):
        found |= counts(options, "num_experts")
        found["top_k_experts"] = found.pop("num_experts_per_tok")
        found["moe_intermediate_size"] = options.required("expert_feed_forward_length")
        found["enable_moe_block"] = True
    return found


def _gemma4_heads(options: Metadata, config: Config, kinds: list[str]) -> Config:
    """Return the number and length of key-value heads, for layers with and without windows."""
    key, size = _HEADS, options.required("attention.key_length")
    numbers = options.by_layer(key, len(kinds))
    heads = {
        kind: {n for n, own in zip(numbers, kinds, strict=True) if own == kind} for kind in kinds
    }
    if any(len(each) > 1 for each in heads.values()):
        raise options.error(key, "one number for blocks with windows, and one for those without")
    (full,), (local,) = heads.pop(FULL), *heads.values()
    found: Config = {"global_head_dim": size, "num_key_value_heads": local}
    if config["attention_k_eq_v"]:
        return found | {"num_global_key_value_heads": full}
    if full == local:
        return found
    own = {"num_key_value_heads": full, "head_dim": size}
    return found | {
        "per_layer_config": {str(index): own for index, kind in enumerate(kinds) if kind == FULL}
    }


def _gemma4_sharing(options: Metadata, count: int, kinds: list[str]) -> Config:
    """Return the number of last blocks that share earlier keys, and whether their MLPs are double-wide."""
    shared = options.integer(_LENDING, 0)
    first = count - shared
    if not 0 <= shared < count or (shared and (first < 2 or kinds[first - 1] == kinds[first - 2])):
        raise options.error(_LENDING, "a block of each kind right before those that share keys")
    if shared and kinds[first - 1] != FULL:
        raise options.error(_LENDING, "a block without a window right before those that share keys")
    sizes = options.by_layer("feed_forward_length", count)
    wide = shared > 0 and sizes[-1] == 2 * sizes[0]
    if sizes != [sizes[0]] * first + [sizes[0] * (1 + wide)] * shared:
        raise options.error(
            "feed_forward_length", "one number, or twice that where keys are shared"
        )
    return {"num_kv_shared_layers": shared, "use_double_wide_mlp": wide}


def by_block(options: Metadata, key: str, count: int) -> list[int]:
    """Return a number, or 0, per block, without those at an array's end that predict further tokens."""
    return options.by_layer(key, options.required("block_count"), least=0)[:count]


def lfm2(options: Metadata, config: Config) -> Config:
    """Blocks without key/value heads are short convolutions; the MLP width needs no adjustment."""
    taps = options.required("shortconv.l_cache")
    if taps < 2:
        raise options.error("shortconv.l_cache", "at least 2 positions")
    heads = by_block(options, _HEADS, config["num_hidden_layers"])
    return {
        "layer_types": [FULL if own else "conv" for own in heads],
        "conv_L_cache": taps,
        "block_auto_adjust_ff_dim": False,
    }


def lfm2_moe(options: Metadata, config: Config) -> Config:
    """Experts' weights always sum to 1."""
    sigmoid(options)
    found = lfm2(options, config)
    del found["block_auto_adjust_ff_dim"]
    return (
        found
        | counts(options, "num_experts")
        | {
            "moe_intermediate_size": options.required("expert_feed_forward_length"),
            "num_dense_layers": options.integer("leading_dense_block_count", 0),
            "norm_topk_prob": True,
        }
    )


def granite_state_space(options: Metadata, config: Config) -> Config:
    """Blocks without key/value heads are Mamba 2, twice as wide as the residual stream."""
    inner, heads = _state_space_heads(options)
    keys = by_block(options, _HEADS, config["num_hidden_layers"])
    if inner != 2 * config["hidden_size"]:
        raise options.error(
            "ssm.inner_size", f"twice embedding_length, {2 * config['hidden_size']}"
        )
    return {
        "layer_types": ["attention" if own else "mamba" for own in keys],
        "mamba_expand": 2,
        "mamba_n_heads": heads,
        "mamba_n_groups": options.required("ssm.group_count"),
        "mamba_d_state": options.required("ssm.state_size"),
        "mamba_d_conv": options.required("ssm.conv_kernel"),
        "mamba_conv_bias": True,
    }


def nemotron_h(options: Metadata, config: Config) -> Config:
    return _nemotron_h(options, config, "mlp")


def nemotron_h_moe(options: Metadata, config: Config) -> Config:
    sigmoid(options)
    experts = experts_behind_dense_layers(options)
    del experts["first_k_dense_replace"]
    return (
        _nemotron_h(options, config, "moe")
        | experts
        | {
            "moe_shared_expert_intermediate_size": options.required(_SHARED),
            "moe_latent_size": options.integer("moe_latent_size", 0) or None,
        }
    )


def _nemotron_h(options: Metadata, config: Config, wide: str) -> Config:
    """Blocks are attention if they have key/value heads, `wide` if they have a width, else Mamba 2."""
    count, kinds = config["num_hidden_layers"], []
    inner, heads = _state_space_heads(options)
    numbers = (by_block(options, key, count) for key in (_HEADS, "feed_forward_length"))
    for own, width in zip(*numbers, strict=True):
        if own and width:
            raise options.error("feed_forward_length", f"0 if {_HEADS} is not 0")
        kinds.append("attention" if own else wide if width else "mamba")
    return {
        "layer_types": kinds,
        "mamba_num_heads": heads,
        "mamba_head_dim": inner // heads,
        "n_groups": options.required("ssm.group_count"),
        "ssm_state_size": options.required("ssm.state_size"),
        "conv_kernel": options.required("ssm.conv_kernel"),
        "use_conv_bias": True,
    }


def _state_space_heads(options: Metadata) -> tuple[int, int]:
    """Return the inner size of Mamba 2, and the number of its heads."""
    inner, heads = options.required("ssm.inner_size"), options.required("ssm.time_step_rank")
    if heads < 1 or inner % heads:
        raise options.error("ssm.time_step_rank", f"a divisor of ssm.inner_size {inner}")
    return inner, heads
