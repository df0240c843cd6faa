"""Gemma: weights of norms minus 1, a gate of GELU, scaled embeddings; caps and windows since the second."""

from __future__ import annotations

import math

from numbacalib.models.description import (
    PRE_NORMS,
    Architecture,
    Options,
    every,
    kinds_of_layers,
    no_windows,
    window_of,
    windows_of_kinds,
)
from numbacalib.models.fields import Fields

_DEFAULTS = {
    "hidden_act": "gelu_pytorch_tanh",
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
_BIASES = {"attention": "attention_bias", "output": "attention_bias"}
_FOUR_NORMS = PRE_NORMS | {
    "attention_output": "post_attention_layernorm",
    "mlp": "pre_feedforward_layernorm",
    "mlp_output": "post_feedforward_layernorm",
}


def _embedding_scale(fields: Fields, options: Options) -> Options:
    fields.nothing("use_bidirectional_attention")
    return {"embedding_scale": math.sqrt(options["hidden_size"])}


def _gemma(fields: Fields, options: Options) -> Options:
    """Read "gelu" of the first files as the function that a hyperbolic tangent approximates, too."""
    # transformers 5 reads hidden_act alone
    fields.choice("hidden_activation", ("gelu_pytorch_tanh",), None)
    activation = "gelu_tanh" if options["activation"] == "gelu" else options["activation"]
    windows = no_windows(fields, options)
    return _embedding_scale(fields, options) | windows | {"activation": activation}


GEMMA = Architecture(
    model_type="gemma",
    causal_lm="GemmaForCausalLM",
    title="Gemma 1",
    norm_offset=1.0,
    defaults=_DEFAULTS | {"num_key_value_heads": 16},
    biases=_BIASES,
    read=_gemma,
)


def _windows(fields: Fields, options: Options, period: int) -> Options:
    window = window_of(fields, 4096)
    count = options["num_layers"]
    kinds = kinds_of_layers(fields, count, window, every(count, period) if window else None)
    return windows_of_kinds(kinds, window)


def _query_scale(fields: Fields) -> Options:
    return {"attention_scale": fields.number("query_pre_attn_scalar", 1e-3, 1e6, 256.0) ** -0.5}


def _cap(fields: Fields, key: str, default: float) -> float:
    """A soft cap, of which null is none."""
    given = fields.number(key, 1e-3, 1e6, None)
    return float(given or (0.0 if key in fields else default))


def _gemma2(fields: Fields, options: Options) -> Options:
    fields.choice("hidden_act", ("gelu_pytorch_tanh",), None)  # hidden_activation counts
    return {
        **_embedding_scale(fields, options),
        **_windows(fields, options, 2),
        **_query_scale(fields),
        "attention_cap": _cap(fields, "attn_logit_softcapping", 50.0),
        "logit_cap": _cap(fields, "final_logit_softcapping", 30.0),
    }


GEMMA2 = Architecture(
    model_type="gemma2",
    causal_lm="Gemma2ForCausalLM",
    title="Gemma 2",
    norms=_FOUR_NORMS,
    norm_offset=1.0,
    keys={"hidden_act": "hidden_activation"},
    defaults=_DEFAULTS | {"num_key_value_heads": 4},
    biases=_BIASES,
    harmless=("cache_implementation",),
    read=_gemma2,
)


def _gemma3(fields: Fields, options: Options) -> Options:
    fields.nothing("attn_logit_softcapping")
    period = fields.integer("sliding_window_pattern", 1, default=6)
    return {
        **_embedding_scale(fields, options),
        **_windows(fields, options, period),
        **_query_scale(fields),
        "logit_cap": _cap(fields, "final_logit_softcapping", 0.0),
        "qk_norm": True,
    }


GEMMA3 = Architecture(
    model_type="gemma3_text",
    causal_lm="Gemma3ForCausalLM",
    title="Gemma 3",
    norms=_FOUR_NORMS,
    norm_offset=1.0,
    local_rope_key="rope_local_base_freq",
    keys={"hidden_act": "hidden_activation"},
    defaults=_DEFAULTS
    | {
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "rope_theta": 1e6,
        "local_rope_theta": 1e4,
    },
    biases=_BIASES,
    harmless=("cache_implementation",),
    read=_gemma3,
)
