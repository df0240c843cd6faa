"""Gemma: norm weights minus 1, a GELU gate, scaled embeddings; soft caps and windows since Gemma 2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from numbacalib.models.description import (
    ATTENTION_BIASES,
    PRE_NORMS,
    SEPARATE,
    Architecture,
    ExpertNames,
    Options,
)
from numbacalib.models.fields import LARGEST, Fields
from numbacalib.models.mixture import Mixture
from numbacalib.models.windows import (
    FULL,
    every,
    kinds_of_layers,
    no_windows,
    window_of,
    windows_of_kinds,
)
from numbacalib.spec.router import Routing

_DEFAULTS = {
    "hidden_act": "gelu_pytorch_tanh",
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
_LOCAL_DEFAULTS = _DEFAULTS | {
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "local_rope_theta": 1e4,
}
"""Defaults of models with a separate rotary base in layers with windows."""
_FOUR_NORMS = PRE_NORMS | {
    "attention_output": "post_attention_layernorm",
    "mlp": "pre_feedforward_layernorm",
    "mlp_output": "post_feedforward_layernorm",
}


def _embedding_scale(fields: Fields, options: Options) -> Options:
    fields.choice("use_bidirectional_attention", (False, "vision"), None)  # text is causal
    return {"embedding_scale": math.sqrt(options["hidden_size"])}


def _gemma(fields: Fields, options: Options) -> Options:
    """Read the options; "gelu" in the first files also means the tanh approximation."""
    # transformers 5 reads only hidden_act
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
    biases=ATTENTION_BIASES,
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
    """Read a soft cap; null means none."""
    given = fields.number(key, 1e-3, 1e6, None)
    return float(given or (0.0 if key in fields else default))


def _gemma2(fields: Fields, options: Options) -> Options:
    fields.choice("hidden_act", ("gelu_pytorch_tanh",), None)  # hidden_activation is used
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
    biases=ATTENTION_BIASES,
    harmless=("cache_implementation",),
    read=_gemma2,
)


VAULTGEMMA = replace(
    GEMMA2,
    model_type="vaultgemma",
    causal_lm="VaultGemmaForCausalLM",
    title="VaultGemma",
    norms={"attention": "input_layernorm", "mlp": "pre_feedforward_layernorm"},
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
    defaults=_LOCAL_DEFAULTS,
    biases=ATTENTION_BIASES,
    harmless=("cache_implementation",),
    read=_gemma3,
)


_MOST_TOKENS = 1 << 24
"""Limit of token ids that float32 represents, as the residual stream stores them."""


def _gemma4(fields: Fields, options: Options) -> Options:
    """Read the layers, per-layer embeddings and experts."""
    vocabulary = options["vocab_size"]
    size = fields.integer("hidden_size_per_layer_input", 0, 1 << 20, 256)
    tables = fields.integer("vocab_size_per_layer_input", 1, LARGEST, 262_144)
    if size and (tables != vocabulary or vocabulary > _MOST_TOKENS):
        raise fields.error(
            "vocab_size_per_layer_input", f"vocab_size {vocabulary}, of at most {_MOST_TOKENS}"
        )
    return _gemma4_layers(fields, options) | {
        "layer_input_size": size,
        "mixture": _gemma4_mixture(fields, options),
    }


def _gemma4_mixture(fields: Fields, options: Options) -> Mixture | None:
    """Read the experts beside every MLP, if there are any."""
    if not fields.flag("enable_moe_block", False):
        fields.nothing("num_experts", "top_k_experts", "moe_intermediate_size")
        return None
    experts = fields.integer("num_experts", 1, 1 << 16)
    kept = fields.integer("top_k_experts", 1, experts)
    size = fields.integer("moe_intermediate_size", 1, 1 << 24)
    layers = (True,) * options["num_layers"]
    return Mixture(experts, size, layers, Routing(kept), options["intermediate_size"])


def _gemma4_layers(fields: Fields, options: Options, window: int = 512) -> Options:
    """Read the layers: those without windows have their own heads, whose values may be their keys."""
    if "rope_parameters" not in fields:
        raise fields.error("rope_parameters", "the rotary embeddings' parameters")
    window, count = fields.integer("sliding_window", 1, LARGEST, window), options["num_layers"]
    kinds = (*kinds_of_layers(fields, count, window, every(count, 6))[:-1], FULL)
    shared = fields.flag("attention_k_eq_v", False)
    return {
        **_embedding_scale(fields, options),
        **windows_of_kinds(kinds, window),
        "global_heads": _global_heads(fields, options, kinds, shared),
        "shared_values": tuple(shared and kind == FULL for kind in kinds),
        **_borrowed_keys(fields, options, kinds),
        "attention_scale": 1.0,
        "logit_cap": _cap(fields, "final_logit_softcapping", 0.0),
        "qk_norm": True,
    }


def _borrowed_keys(fields: Fields, options: Options, kinds: Sequence[str]) -> Options:
    """Read the last layers that share keys and values of the last earlier layer of their kind."""
    count = options["num_layers"]
    first = count - fields.integer("num_kv_shared_layers", 0, count - 1, 0)
    wide = fields.flag("use_double_wide_mlp", False)
    sources = {kind: index for index, kind in enumerate(kinds[:first])}  # the last of each
    if set(kinds) - set(sources):
        raise fields.error("num_kv_shared_layers", "a layer of each kind before those that share")
    if first == count:
        return {}
    size = options["intermediate_size"]
    return {
        "key_sources": (None,) * first + tuple(sources[kind] for kind in kinds[first:]),
        "mlp_sizes": tuple(size * (1 + (wide and index >= first)) for index in range(count)),
    }


def _global_heads(
    fields: Fields, options: Options, kinds: Sequence[str], shared: bool
) -> tuple[int, int]:
    """Read the number and length of key-value heads of layers without windows, in either form of files."""
    size = fields.integer("global_head_dim", 2, 65_536, 512)
    heads = fields.integer("num_global_key_value_heads", 1, options["num_heads"], None)
    if not shared or heads is None:
        heads = options["num_kv_heads"]
    layers = fields.object("per_layer_config", None)
    given = {(heads, size)}
    if layers is not None:
        own = [layers.object(str(index)) for index, kind in enumerate(kinds) if kind == FULL]
        layers.refuse_unread(owner=" of layers with windows")
        given = {
            (
                layer.integer("num_key_value_heads", 1, options["num_heads"], heads),
                layer.integer("head_dim", 2, 65_536),
            )
            for layer in own
        }
    heads, size = next(iter(given))
    if len(given) > 1 or size % 2 or options["num_heads"] % heads:
        raise ValueError(
            "per_layer_config: expected heads of one even length, and a divisor of "
            f"num_attention_heads={options['num_heads']}, in layers without windows, got {sorted(given)}"
        )
    return heads, size


GEMMA4 = Architecture(
    model_type="gemma4_text",
    causal_lm="Gemma4ForCausalLM",
    title="Gemma 4",
    linears=SEPARATE
    | {"layer_gate": "per_layer_input_gate", "layer_output": "per_layer_projection"},
    norms=_FOUR_NORMS
    | {
        "layer_input_output": "post_per_layer_input_norm",
        "experts": "pre_feedforward_layernorm_2",
        "experts_output": "post_feedforward_layernorm_2",
        "shared_output": "post_feedforward_layernorm_1",
    },
    experts=ExpertNames(
        router="router.proj",
        router_norm="router.scale",
        factors="router.per_expert_scale",
        each="experts",
    ),
    value_norm=True,
    block_scale="layer_scalar",
    local_rope_key="rope_local_base_freq",
    keys={"hidden_act": "hidden_activation"},
    defaults=_LOCAL_DEFAULTS,
    biases=ATTENTION_BIASES,
    read=_gemma4,
)


def _gemma4_unified(fields: Fields, options: Options) -> Options:
    fields.choice("hidden_size_per_layer_input", (0,), 0)
    fields.nothing("enable_moe_block")
    return _gemma4_layers(fields, options, 1024)


GEMMA4_UNIFIED = replace(
    GEMMA4,
    model_type="gemma4_unified_text",
    causal_lm="Gemma4UnifiedForCausalLM",
    title="Gemma 4 12B",
    linears=SEPARATE,
    norms=_FOUR_NORMS,
    experts=None,
    defaults=_LOCAL_DEFAULTS | {"max_position_embeddings": 262144},
    harmless=("vocab_size_per_layer_input",),
    read=_gemma4_unified,
)
