"""The ``config.json`` of a model in a GGUF file, from the file's metadata.

What each key does: llama.cpp's ``src/llama-model.cpp`` (``load_hparams``) and ``src/llama-context.cpp``,
https://github.com/ggml-org/llama.cpp. A key under the architecture's prefix that is not known here is
refused, since it may change what the model computes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.architectures import ARCHITECTURES
from numbacalib.models.config import ModelConfig
from numbacalib.models.description import FULL, SLIDING, Architecture
from numbacalib.models.gguf_architectures import GGUF_ARCHITECTURES
from numbacalib.models.gguf_metadata import Metadata
from numbacalib.models.rope import inverse_frequencies
from numbacalib.models.rope_parameters import yarn_magnitude

__all__ = ["FACTORS", "LOG_MULTIPLIERS", "ROPE_DIVISORS", "architecture_of", "hf_config"]

ROPE_DIVISORS = "rope_freqs.weight"
"""Divisors of the rotary frequencies: how a file says that Llama 3's scaling applies."""

FACTORS = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
"""Factors of longrope, by Hugging Face's names."""

LOG_MULTIPLIERS = {
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "kimi_k2", "youtu"), 0.1),
    "ministral3": 1.0,
}
"""By what ``mscale_all_dim`` is multiplied in ``rope.scaling.yarn_log_multiplier``, where it counts."""

_TOKENS = "tokenizer.ggml.tokens"

_UNDERSTOOD = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.layer_norm_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",  # says how the model was made
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_log_multiplier",
    "tensor_data_layout",  # always as llama.cpp's graph wants it
    "vocab_size",  # the embeddings say it
}
_NEUTRAL: dict[str, float] = {
    "attention.causal": True,
    "attention.clamp_kqv": 0,
    "attention.max_alibi_bias": 0,
    "attention.sliding_window": 0,
    "attn_logit_softcapping": 0,
    "expert_count": 0,
    "expert_used_count": 0,
    "final_logit_softcapping": 0,
    "logit_scale": 1,
    "nextn_predict_layers": 0,
    "rope.scaling.yarn_ext_factor": 1,
    "use_parallel_residual": False,
}
"""Options of other models, and the values with which they change nothing."""


def architecture_of(metadata: Metadata) -> str:
    """Name of the architecture, once every key of it is known.

    Raises
    ------
    ValueError
        If the architecture or one of its options is not supported, or the file is no model.
    """
    kind = metadata.string("general.type", "model")
    if kind != "model":
        raise ValueError(f"general.type: expected a model, got {kind!r}")
    architecture = metadata.string("general.architecture")
    if architecture not in GGUF_ARCHITECTURES:
        raise metadata.error("general.architecture", f"one of {', '.join(GGUF_ARCHITECTURES)}")
    own = GGUF_ARCHITECTURES[architecture].keys
    options = metadata.under(f"{architecture}.")
    for key in options:
        if key in own:
            continue
        if key in _NEUTRAL:
            value = options.boolean(key) if isinstance(_NEUTRAL[key], bool) else options.number(key)
            if value != _NEUTRAL[key]:
                raise options.error(key, f"{_NEUTRAL[key]}: other values are not supported")
        elif key not in _UNDERSTOOD:
            raise ValueError(
                f"{architecture}.{key}: expected none, an option that is not supported"
            )
    return architecture


def hf_config(
    metadata: Metadata,
    architecture: str,
    shapes: Mapping[str, tuple[int, ...]],
    factors: Mapping[str, NDArray[Any]],
) -> dict[str, Any]:
    """The ``config.json`` that the model was converted from, as far as it matters.

    Parameters
    ----------
    metadata : Metadata
    architecture : str
        What `architecture_of` gave.
    shapes : mapping of str to tuple of int
        The tensors, as Hugging Face names them.
    factors : mapping of str to array [rotary dimensions / 2]
        The tensors `ROPE_DIVISORS` and those of `FACTORS`, where the file has them.

    Raises
    ------
    ValueError
        If a value is absent, of another type, or not supported.
    """
    own = GGUF_ARCHITECTURES[architecture]
    options = metadata.under(f"{architecture}.")
    described = ARCHITECTURES[own.type_of(options)]
    config = _shape(metadata, options, described, shapes)
    epsilon = f"attention.layer_norm_{'' if own.layer_norm else 'rms_'}epsilon"
    if (value := options.number(epsilon)) is None:
        raise options.error(epsilon, "a finite number")
    config |= {described.key("rms_norm_eps"): value, "model_type": described.model_type}
    config |= _tensor_flags(described, shapes) | _rotary_share(options, described, config)
    config |= own.read(options, config)
    config["architectures"] = [described.causal_lm]
    for name in ("bos", "eos", "padding"):
        token = metadata.integer(f"tokenizer.ggml.{name}_token_id")
        if token is not None:
            config[f"{name.removesuffix('ding')}_token_id"] = token
    return _with_scaling(config, options, described, factors)


def _shape(
    metadata: Metadata,
    options: Metadata,
    described: Architecture,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Any]:
    """The keys of `hf_config` that every architecture has."""
    heads = options.required("attention.head_count")
    hidden = options.required("embedding_length")
    # llama.cpp's default; transformers has another for some
    head_dim = options.integer("attention.key_length", hidden // max(heads, 1))
    kv_heads = options.integer("attention.head_count_kv", heads)
    latent = "latent" in described.linears
    if latent:  # of which the file describes the vectors, not the heads that are made of them
        head_dim = options.integer("attention.key_length_mla", head_dim)
    _check_heads(options, described, heads, head_dim, shapes)
    vocabulary = shapes["model.embed_tokens.weight"][0]
    if _TOKENS in metadata and len(metadata.strings(_TOKENS)) > vocabulary:
        raise metadata.error(_TOKENS, f"at most the {vocabulary} of token_embd.weight")
    if latent:
        head_dim, kv_heads = options.required("rope.dimension_count"), heads
    elif options.integer("attention.value_length", head_dim) != head_dim:
        raise options.error("attention.value_length", f"the whole head, {head_dim}")
    config = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": options.required("feed_forward_length"),
        "num_hidden_layers": _block_count(options, shapes),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": described.defaults.get("hidden_act", "silu"),
        "max_position_embeddings": options.required("context_length"),
        "rope_theta": options.number("rope.freq_base", 10000.0),
        "tie_word_embeddings": "lm_head.weight" not in shapes,
    }
    return {described.key(name): value for name, value in config.items()}


def _check_heads(
    options: Metadata,
    described: Architecture,
    heads: int,
    head_dim: int,
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Compare heads with the queries' rows, before anything is made of a size that is absurd."""
    linears = described.linears
    fused = "key" not in linears or linears["query"] == linears["key"]
    name = f"model.layers.0.{linears[_first_role(described)]}.weight"
    queries = shapes.get(name, (heads * head_dim,))[0]
    fused &= "latent" not in linears
    if queries < heads * head_dim if fused else queries != heads * head_dim:
        raise options.error(
            "attention.head_count",
            f"heads that make up the {queries} rows of blk.0.attn_q{'kv' * fused}.weight, not {heads} of "
            f"{head_dim}",
        )


def _first_role(described: Architecture) -> str:
    """Role of the layer that makes queries."""
    return "query" if "query" in described.linears else "query_key_value"


_NORM_FLAGS = {"cohere": "use_qk_norm", "glm4_moe": "use_qk_norm", "phi": "qk_layernorm"}
"""Keys that say whether queries and keys are normalized, of architectures where some are."""


def _tensor_flags(described: Architecture, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Keys that say which layers have biases and norms, as the tensors show."""
    flags: dict[str, int] = {}
    if described.model_type in _NORM_FLAGS:
        norm = f"model.layers.0.{described.norms['query']}.weight"
        flags[_NORM_FLAGS[described.model_type]] = norm in shapes
    if described.model_type == "falcon":
        norms = 2 if "model.layers.0.ln_mlp.weight" in shapes else 1
        flags["num_ln_in_parallel_attn"] = norms
    for part, role in (("attention", _first_role(described)), ("output", "output"), ("mlp", "up")):
        key = described.biases.get(part, False)
        if not isinstance(key, bool):
            key = key if isinstance(key, str) else key[0]
            flags.setdefault(key, f"model.layers.0.{described.linears[role]}.bias" in shapes)
    return flags


def _rotary_share(
    options: Metadata, described: Architecture, config: Mapping[str, Any]
) -> dict[str, Any]:
    """The part of a head that turns, of architectures where that may be less than all."""
    if "latent" in described.linears:  # whose heads have a part that turns and one that does not
        return {}
    size, key = config["head_dim"], "rope.dimension_count"
    dims = options.integer(key, size)
    if "partial_rotary_factor" in described.defaults:
        if not 0 < dims <= size:
            raise options.error(key, f"a part of the head's {size}")
        return {"partial_rotary_factor": dims / size}
    if dims != size:
        raise options.error(key, f"the whole head, {size}")
    return {}


def _with_scaling(
    config: dict[str, Any],
    options: Metadata,
    described: Architecture,
    factors: Mapping[str, NDArray[Any]],
) -> dict[str, Any]:
    """A configuration with the scaling of its rotary embedding, or of both of them."""
    if FACTORS["long_factor"] in factors:
        return config | _longrope(options, factors)
    scaling = _rope_scaling(options, described)
    if ROPE_DIVISORS in factors:
        if scaling:
            key = options.label("rope.scaling")
            raise ValueError(f"{ROPE_DIVISORS}: expected none beside {key}")
        scaling = _llama3_scaling(config, factors[ROPE_DIVISORS])
    if described.local_rope_key:
        local = {"rope_type": "default", "rope_theta": config.pop(described.local_rope_key)}
        whole = scaling or {"rope_type": "default"}
        full = whole | {"rope_theta": config.pop("rope_theta")}
        return config | {"rope_parameters": {FULL: full, SLIDING: local}}
    if parameters := config.get("rope_parameters"):
        return config | {"rope_parameters": parameters | (scaling or {})}
    return config | {"rope_scaling": scaling} if scaling else config


def _longrope(options: Metadata, factors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """LongRoPE's parameters, whose factors are tensors."""
    missing = [name for name in FACTORS.values() if name not in factors]
    if missing:
        raise ValueError(f"{missing[0]}: expected it beside the other factors, got none")
    original = options.required("rope.scaling.original_context_length")
    scaling: dict[str, Any] = {
        "rope_type": "longrope",
        **{key: factors[name].tolist() for key, name in FACTORS.items()},
    }
    if (attention := options.number("rope.scaling.attn_factor")) is not None:
        scaling["attention_factor"] = attention
    return {"rope_scaling": scaling, "original_max_position_embeddings": original}


def _block_count(options: Metadata, names: Collection[str]) -> int:
    """Count the blocks that the tensors show: a count that is damaged would make loops without end."""
    count = options.required("block_count")
    blocks = {match[1] for name in names if (match := re.match(r"model\.layers\.(\d+)\.", name))}
    last = max(map(int, blocks), default=-1)
    if not count == len(blocks) == last + 1:
        raise options.error("block_count", f"the tensors' {len(blocks)} blocks up to number {last}")
    return count


def _rope_scaling(options: Metadata, described: Architecture) -> dict[str, Any] | None:
    """Say in transformers' words what llama.cpp makes of the keys.

    Without a type the scaling is linear, and a factor of 0 is none.
    """
    kind = options.string("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise options.error("rope.scaling.type", "none, linear or yarn")
    factor = options.number("rope.scaling.factor", options.number("rope.scale_linear", 0.0)) or 1.0
    if factor < 0:
        raise ValueError(f"rope.scaling.factor: expected a positive number, got {factor}")
    attention = options.number("rope.scaling.attn_factor", 1.0)
    if kind != "yarn":
        if attention != 1:
            raise options.error("rope.scaling.attn_factor", "1 without the type yarn")
        return {"rope_type": kind, "factor": factor} if kind == "linear" and factor != 1 else None
    original = options.integer("rope.scaling.original_context_length")
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original or options.required("context_length"),
    }
    for key in ("beta_fast", "beta_slow"):
        value = options.number(f"rope.scaling.yarn_{key}")
        if value is not None:
            scaling[key] = value
    weight = options.number("rope.scaling.yarn_log_multiplier", 0.0)
    if described.model_type in LOG_MULTIPLIERS and weight:
        if attention != 1:
            raise options.error("rope.scaling.attn_factor", "1 beside a yarn_log_multiplier")
        weight /= LOG_MULTIPLIERS[described.model_type]
        # llama.cpp takes the heads' factor of scores for both where there is a latent vector
        own = weight if "latent" in described.linears else 1.0
        return scaling | {"mscale": own, "mscale_all_dim": weight}
    if "latent" in described.linears and factor > 1:
        key = "rope.scaling.yarn_log_multiplier"
        raise options.error(key, "a number beside the type yarn")
    if attention != 1:  # a factor beside YaRN's own
        scaling["attention_factor"] = attention * yarn_magnitude(factor)
    return scaling


_LLAMA3_BOUNDS = [{"low_freq_factor": 1.0, "high_freq_factor": high} for high in (4.0, 1.0)]
"""Of Llama 3, and of Llama 4."""


def _llama3_scaling(config: dict[str, Any], divisors: NDArray[Any]) -> dict[str, Any]:
    """The Llama 3 parameters whose frequency divisors are those in the file.

    The file holds the divisors only. Releases so far used one of two pairs of bounds, so the largest
    divisor is all that is unknown beside; the others must then agree.
    """
    plain, _ = inverse_frequencies(ModelConfig.from_hf(config).rope, 1)
    if divisors.shape != plain.shape or not np.all((divisors > 0) & np.isfinite(divisors)):
        raise ValueError(
            f"{ROPE_DIVISORS}: expected {len(plain)} positive numbers, got shape {divisors.shape}"
        )
    for bounds in _LLAMA3_BOUNDS:
        scaling = {"rope_type": "llama3", "factor": float(divisors.max()), **bounds}
        scaling["original_max_position_embeddings"] = 8192
        own = ModelConfig.from_hf(config | {"rope_scaling": scaling})
        scaled, _ = inverse_frequencies(own.rope, 1)
        if np.allclose(plain / scaled, divisors, rtol=1e-4):
            return scaling
    raise ValueError(f"{ROPE_DIVISORS}: not the divisors of Llama 3's rotary scaling")
