"""Conversion of a GGUF file's metadata to a ``config.json``.

Source for the keys: llama.cpp's ``src/llama-model.cpp`` (``load_hparams``) and ``src/llama-context.cpp``,
https://github.com/ggml-org/llama.cpp. An unknown key under the architecture's prefix is refused, since it
may change what the model computes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from numpy.typing import NDArray

from numbacalib.models.architectures import ARCHITECTURES
from numbacalib.models.description import Architecture
from numbacalib.models.gguf_architectures import GGUF_ARCHITECTURES
from numbacalib.models.gguf_hybrids import by_block
from numbacalib.models.gguf_metadata import Metadata
from numbacalib.models.gguf_rope import rotary_share, with_scaling

__all__ = ["FURTHER", "architecture_of", "block_count", "hf_config"]

_TOKENS = "tokenizer.ggml.tokens"
FURTHER = "nextn_predict_layers"
"""Key of the number of multi-token prediction (MTP) blocks, which are the last ones and left out."""

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
    FURTHER,
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",  # describes the training
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_log_multiplier",
    "tensor_data_layout",  # always that of llama.cpp's graph
    "vocab_size",  # read from the embeddings instead
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
    "rope.scaling.yarn_ext_factor": 1,
    "use_parallel_residual": False,
}
"""Options of other models, and the values with which they have no effect."""


def architecture_of(metadata: Metadata) -> str:
    """Return the name of the architecture, after checking that all its keys are supported.

    Raises
    ------
    ValueError
        If the architecture or one of its options is not supported, or the file is not a model.
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
    """Return the ``config.json`` of the model, with the keys that matter.

    Parameters
    ----------
    metadata : Metadata
    architecture : str
        The result of `architecture_of`.
    shapes : mapping of str to tuple of int
        Shapes of the tensors by Hugging Face name.
    factors : mapping of str to array [rotary dimensions / 2]
        The tensors `ROPE_DIVISORS` and those of `FACTORS`, if the file has them.

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
    config |= _tensor_flags(described, shapes) | rotary_share(options, described, config)
    config |= own.read(options, config)
    config["architectures"] = [described.causal_lm]
    for name in ("bos", "eos", "padding"):
        token = metadata.integer(f"tokenizer.ggml.{name}_token_id")
        if token is not None:
            config[f"{name.removesuffix('ding')}_token_id"] = token
    return with_scaling(config, options, described, factors)


def _shape(
    metadata: Metadata,
    options: Metadata,
    described: Architecture,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Any]:
    """Return the keys of `hf_config` that every architecture has."""
    heads = options.required("attention.head_count")
    hidden = options.required("embedding_length")
    count = _block_count(options, shapes)
    # llama.cpp's default, which differs from transformers' for some models
    head_dim = options.integer("attention.key_length", hidden // max(heads, 1))
    local = options.integer("attention.key_length_swa", head_dim)  # of layers with windows
    kv_heads = _first_of(options, "attention.head_count_kv", count, heads)
    latent = "latent" in described.linears
    if latent:  # attention.key_length is that of the latent vectors here, not of heads
        local = options.integer("attention.key_length_mla", head_dim)
    _check_heads(options, described, heads, local, shapes)
    vocabulary = shapes["model.embed_tokens.weight"][0]
    if _TOKENS in metadata and len(metadata.strings(_TOKENS)) > vocabulary:
        raise metadata.error(_TOKENS, f"at most the {vocabulary} of token_embd.weight")
    if latent:
        local, kv_heads = options.required("rope.dimension_count"), heads
    else:
        for key, size in (("value_length", head_dim), ("value_length_swa", local)):
            if options.integer(f"attention.{key}", size) != size:
                raise options.error(f"attention.{key}", f"the whole head, {size}")
    experts = options.integer("expert_feed_forward_length")  # if every layer has experts
    config = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": _first_of(options, "feed_forward_length", count, experts),
        "num_hidden_layers": count,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": local,
        "hidden_act": described.defaults.get("hidden_act", "silu"),
        "max_position_embeddings": options.required("context_length"),
        "rope_theta": options.number("rope.freq_base", 10000.0),
        "tie_word_embeddings": "lm_head.weight" not in shapes,
    }
    return {described.key(name): value for name, value in config.items()}


_SEVERAL = {"gemma4"}
"""Architectures with heads and MLPs of several sizes, which `GGUFArchitecture.read` reads."""
_PARTIAL = {"granitehybrid", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe"}
"""Architectures with blocks without attention (0 heads) or without an MLP (width 0)."""


def _first_of(options: Metadata, key: str, count: int, default: int | None) -> int:
    """Return a key's first number that is not 0, where files may list one for each block."""
    if key not in options and default is not None:
        return default
    architecture = options.label("").rstrip(".")
    if architecture in _PARTIAL:
        numbers = [number for number in by_block(options, key, count) if number] or [default or 1]
    else:
        numbers = options.by_layer(key, count)
    if len(set(numbers)) > 1 and architecture not in _SEVERAL:
        raise options.error(key, "the same number for each block")
    return numbers[0]


def _check_heads(
    options: Metadata,
    described: Architecture,
    heads: int,
    head_dim: int,
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Compare the heads with the query rows, before anything is allocated for a damaged count."""
    linears, role = described.linears, _first_role(described)
    fused = role == "query_key_value" or linears.get("key") == linears[role]
    fused |= role == "query_gate"  # includes the gates' rows
    name = f"model.layers.{_first_with(described, shapes, role)}.{linears[role]}.weight"
    queries = shapes.get(name, (heads * head_dim,))[0]
    fused &= "latent" not in linears
    if queries < heads * head_dim if fused else queries != heads * head_dim:
        raise options.error(
            "attention.head_count",
            f"heads that make up the {queries} rows of blk.0.attn_q{'kv' * fused}.weight, not {heads} of "
            f"{head_dim}",
        )


def _first_role(described: Architecture) -> str:
    """Role of the layer that projects queries."""
    roles = ("query", "query_gate", "query_key_value")
    return next(role for role in roles if role in described.linears)


def _first_with(described: Architecture, shapes: Mapping[str, tuple[int, ...]], role: str) -> int:
    """Return the number of the first block with a linear layer of this role."""
    end = f".{described.linears[role]}.weight"
    numbers = (name.split(".")[2] for name in shapes if name.endswith(end))
    return min(map(int, numbers), default=0)


_NORM_FLAGS = {"cohere": "use_qk_norm", "glm4_moe": "use_qk_norm", "phi": "qk_layernorm"}
"""Keys that say whether queries and keys are normalized, for architectures with both kinds of models."""


def _tensor_flags(described: Architecture, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Infer the keys that say which layers have biases and norms from the tensors present."""
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
            first = _first_with(described, shapes, role)
            name = f"model.layers.{first}.{described.linears[role]}.bias"
            flags.setdefault(key, name in shapes)
    if described.value_norm:  # values of some layers may be their keys
        keys, values = (f".{described.linears[role]}.weight" for role in ("key", "value"))
        flags["attention_k_eq_v"] = any(
            name.endswith(keys) and name.replace(keys, values) not in shapes for name in shapes
        )
    return flags


def block_count(options: Metadata) -> int:
    """Return the number of blocks without MTP blocks."""
    count, further = options.required("block_count"), options.integer(FURTHER, 0)
    if not 0 <= further < max(count, 1):
        raise options.error(FURTHER, f"a number below the {count} blocks")
    return count - further


def _block_count(options: Metadata, names: Collection[str]) -> int:
    """Return the number of blocks, checked against the tensors: a damaged count may be huge."""
    count = block_count(options)
    blocks = {match[1] for name in names if (match := re.match(r"model\.layers\.(\d+)\.", name))}
    last = max(map(int, blocks), default=-1)
    if not count == len(blocks) == last + 1:
        raise options.error("block_count", f"the tensors' {len(blocks)} blocks up to number {last}")
    return count
