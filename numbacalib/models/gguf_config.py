"""The ``config.json`` of a model in a GGUF file, from the file's metadata.

What each key does: llama.cpp's ``src/llama-model.cpp`` (``load_hparams``) and ``src/llama-context.cpp``,
https://github.com/ggml-org/llama.cpp. A key under the architecture's prefix that is not known here is
refused, since it may change what the model computes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.config import ModelConfig
from numbacalib.models.gguf_metadata import Metadata
from numbacalib.models.rope import inverse_frequencies

__all__ = ["ROPE_DIVISORS", "architecture_of", "hf_config"]

ROPE_DIVISORS = "rope_freqs.weight"
"""Divisors of the rotary frequencies: how a file says that Llama 3's scaling applies."""

_TOKENS = "tokenizer.ggml.tokens"
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3")

_UNDERSTOOD = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
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
    "tensor_data_layout",  # always as llama.cpp's graph wants it
    "vocab_size",  # the embeddings say it
}
_NEUTRAL: dict[str, float] = {
    "attention.causal": True,
    "attention.clamp_kqv": 0,
    "attention.max_alibi_bias": 0,
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
    if architecture not in _GGUF_ARCHITECTURES:
        raise metadata.error("general.architecture", f"one of {', '.join(_GGUF_ARCHITECTURES)}")
    options = metadata.under(f"{architecture}.")
    for key in options:
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
    divisors: NDArray[Any] | None,
) -> dict[str, Any]:
    """The ``config.json`` that the model was converted from, as far as it matters.

    Parameters
    ----------
    metadata : Metadata
    architecture : str
        What `architecture_of` gave.
    shapes : mapping of str to tuple of int
        The tensors, as Hugging Face names them.
    divisors : array [head_dim / 2], optional
        The tensor `ROPE_DIVISORS`, where the file has it.

    Raises
    ------
    ValueError
        If a value is absent, of another type, or not supported.
    """
    options = metadata.under(f"{architecture}.")
    heads = options.required("attention.head_count")
    hidden = options.required("embedding_length")
    # llama.cpp's default; transformers has another for qwen3
    head_dim = options.integer("attention.key_length", hidden // max(heads, 1))
    queries = shapes.get("model.layers.0.self_attn.q_proj.weight", (heads * head_dim,))[0]
    if heads * head_dim != queries:  # before anything is made of a size that is absurd
        raise ValueError(
            f"{architecture}.attention.head_count: expected heads that make up the {queries} rows of "
            f"blk.0.attn_q.weight, got {heads} of {head_dim}"
        )
    vocabulary = shapes["model.embed_tokens.weight"][0]
    if _TOKENS in metadata and len(metadata.strings(_TOKENS)) > vocabulary:
        raise metadata.error(_TOKENS, f"at most the {vocabulary} of token_embd.weight")
    for key in ("attention.value_length", "rope.dimension_count"):
        if options.integer(key, head_dim) != head_dim:
            raise options.error(key, f"the whole head, {head_dim}")
    window = options.integer("attention.sliding_window", 0)
    if window and architecture != "llama":
        raise options.error("attention.sliding_window", "0: windows of it are not supported")
    if (epsilon := options.number("attention.layer_norm_rms_epsilon")) is None:
        raise options.error("attention.layer_norm_rms_epsilon", "a finite number")
    # mistral is "llama" in GGUF but for its window
    model_type = "mistral" if window else architecture
    config: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[model_type]],
        "model_type": model_type,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": options.required("feed_forward_length"),
        "num_hidden_layers": _block_count(options, shapes),
        "num_attention_heads": heads,
        "num_key_value_heads": options.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": options.required("context_length"),
        "rms_norm_eps": epsilon,
        "rope_theta": options.number("rope.freq_base", 10000.0),
        "tie_word_embeddings": "lm_head.weight" not in shapes,
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in shapes,
        "mlp_bias": "model.layers.0.mlp.gate_proj.bias" in shapes,
        "use_sliding_window": bool(window),
    }
    if window:
        config["sliding_window"] = window
    for name in ("bos", "eos", "padding"):
        token = metadata.integer(f"tokenizer.ggml.{name}_token_id")
        if token is not None:
            config[f"{name.removesuffix('ding')}_token_id"] = token
    scaling = _rope_scaling(options)
    if divisors is not None:
        if scaling:
            raise ValueError(f"{ROPE_DIVISORS}: expected none beside {architecture}.rope.scaling")
        scaling = _llama3_scaling(config, divisors)
    return config | {"rope_scaling": scaling} if scaling else config


def _block_count(options: Metadata, names: Collection[str]) -> int:
    """As many as the tensors show: a count that is damaged would make loops without end."""
    count = options.required("block_count")
    blocks = {match[1] for name in names if (match := re.match(r"model\.layers\.(\d+)\.", name))}
    last = max(map(int, blocks), default=-1)
    if not count == len(blocks) == last + 1:
        raise options.error("block_count", f"the tensors' {len(blocks)} blocks up to number {last}")
    return count


def _rope_scaling(options: Metadata) -> dict[str, Any] | None:
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
    if attention != 1:  # a factor beside YaRN's own, arXiv:2309.00071, equation 22
        scaling["attention_factor"] = attention * (0.1 * math.log(factor) + 1 if factor > 1 else 1)
    return scaling


def _llama3_scaling(config: dict[str, Any], divisors: NDArray[Any]) -> dict[str, Any]:
    """The Llama 3 parameters whose frequency divisors are those in the file.

    The file holds the divisors only. Every release so far used the same bounds, so the largest
    divisor is all that is unknown; the others must then agree.
    """
    plain, _ = inverse_frequencies(ModelConfig.from_hf(config).rope, 1)
    if divisors.shape != plain.shape or not np.all((divisors > 0) & np.isfinite(divisors)):
        raise ValueError(
            f"{ROPE_DIVISORS}: expected {len(plain)} positive numbers, got shape {divisors.shape}"
        )
    scaling = {
        "rope_type": "llama3",
        "factor": float(divisors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    own = ModelConfig.from_hf(config | {"rope_scaling": scaling})
    scaled, _ = inverse_frequencies(own.rope, 1)
    if not np.allclose(plain / scaled, divisors, rtol=1e-4):
        raise ValueError(f"{ROPE_DIVISORS}: not the divisors of Llama 3's rotary scaling")
    return scaling
