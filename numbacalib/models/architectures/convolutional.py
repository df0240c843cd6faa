"""Decoders whose layers mostly have a short convolution in place of attention."""

from __future__ import annotations

from dataclasses import replace

from numbacalib.models.architectures.mixtures import TRAINING, deepseek_mixture
from numbacalib.models.description import (
    ATTENTION_BIASES,
    Architecture,
    ConvolutionNames,
    ExpertNames,
    Options,
)
from numbacalib.models.fields import LARGEST, Fields
from numbacalib.models.short_convolution import ShortConvolution
from numbacalib.models.windows import FULL, SLIDING, windows_of_kinds

_CONVOLUTION = "conv"
_KINDS = SLIDING, _CONVOLUTION, FULL, _CONVOLUTION
"""Default kinds of every four layers of LFM 3, except for its first layer."""


def _convolutions(fields: Fields, options: Options) -> Options:
    """Read the layers with a short convolution, and its length."""
    count = options["num_layers"]
    kinds = fields.texts("layer_types", None)
    if kinds is None:
        full = fields.integers("full_attn_idxs", 0, None, None) or range(count)
        kinds = [FULL if index in full else _CONVOLUTION for index in range(count)]
    fields.integers("full_attn_idxs", 0, None, None)
    if len(kinds) != count or set(kinds) - {FULL, _CONVOLUTION}:
        raise fields.error("layer_types", f"{FULL} or {_CONVOLUTION} for each of {count} layers")
    fields.choice("conv_bias", (False,), False)
    taps = fields.integer("conv_L_cache", 1, 64, 3)
    layers = tuple(kind == _CONVOLUTION for kind in kinds)
    return {
        "convolution": ShortConvolution(layers, taps),
        "qk_norm": True,
        "sliding_windows": (None,) * count,
    }


def _lfm2(fields: Fields, options: Options) -> Options:
    """Read the MLP's width, which files may give before its adjustment."""
    width = options["intermediate_size"]
    fields.choice("block_use_swiglu", (True,), True)
    factor = fields.number("block_ffn_dim_multiplier", 1e-3, 1e3, 1.0)
    unit = fields.integer("block_multiple_of", 1, LARGEST, 256)
    if fields.flag("block_auto_adjust_ff_dim", True):
        width = unit * -(-int(factor * int(2 * width / 3)) // unit)
    return _convolutions(fields, options) | {"intermediate_size": width}


LFM2 = Architecture(
    model_type="lfm2",
    causal_lm="Lfm2ForCausalLM",
    title="LFM 2",
    renamed={"model.embedding_norm.": "model.norm."},
    linears={
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "output": "self_attn.out_proj",
        "gate": "feed_forward.w1",
        "up": "feed_forward.w3",
        "down": "feed_forward.w2",
    },
    norms={
        "attention": "operator_norm",
        "mlp": "ffn_norm",
        "query": "self_attn.q_layernorm",
        "key": "self_attn.k_layernorm",
    },
    convolution=ConvolutionNames(
        linears={"thirds": "conv.in_proj", "output": "conv.out_proj"}, taps="conv.conv"
    ),
    keys={"rms_norm_eps": "norm_eps"},
    synonyms={"tie_embedding": "tie_word_embeddings", "block_ff_dim": "intermediate_size"},
    defaults={
        "max_position_embeddings": 128_000,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
    harmless=(
        *("block_dim", "block_use_xavier_init", "block_norm_eps", "block_mlp_init_scale"),
        *("block_out_init_scale", "conv_dim", "conv_dim_out", "conv_use_xavier_init"),
        *("num_heads", "theta", "use_pos_enc"),
    ),
    read=_lfm2,
)


def _lfm3(fields: Fields, options: Options) -> Options:
    """Read windows, which some of the attention layers have."""
    count = options["num_layers"]
    window = fields.integer("sliding_window", 1, LARGEST, 256)
    kinds = fields.texts("layer_types", None)
    if kinds is None:
        kinds = [_KINDS[index % 4] if index else _CONVOLUTION for index in range(count)]
    if len(kinds) != count or set(kinds) - {FULL, SLIDING, _CONVOLUTION}:
        expected = f"{FULL}, {SLIDING} or {_CONVOLUTION} for each of {count} layers"
        raise fields.error("layer_types", expected)
    for key in ("use_sandwich_norm", "use_attention_gate"):
        fields.choice(key, (True,), True)
    fields.choice("conv_bias", (False,), False)
    layers = tuple(kind == _CONVOLUTION for kind in kinds)
    return windows_of_kinds(kinds, window) | {
        "convolution": ShortConvolution(layers, fields.integer("conv_L_cache", 1, 64, 7)),
        "qk_norm": True,
    }


LFM3 = replace(
    LFM2,
    model_type="lfm3",
    causal_lm="Lfm3ForCausalLM",
    title="LFM 3",
    linears={**LFM2.linears, "output": "self_attn.o_proj"},
    norms={
        "attention": "operator_norm",
        "attention_output": "post_operator_norm",
        "mlp": "ffn_norm",
        "mlp_output": "post_ffn_norm",
        "query": "self_attn.q_norm",
        "key": "self_attn.k_norm",
    },
    head_gate="self_attn.gate_proj",
    aliases={"self_attn.gate_proj": "self_attn.g_proj"},
    local_rope_key="rope_local_base_freq",
    synonyms={"tie_embedding": "tie_word_embeddings"},
    defaults={
        "head_dim": 128,
        "max_position_embeddings": 128_000,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "local_rope_theta": 1e4,
        "tie_word_embeddings": True,
    },
    biases=ATTENTION_BIASES,
    harmless=(),
    read=_lfm3,
)

_MIXTURE = {
    "n_routed_experts": 32,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1792,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
    "n_shared_experts": 0,
}


def _lfm2_moe(fields: Fields, options: Options) -> Options:
    fields.choice("use_expert_bias", (True,), True)
    dense = fields.integer("num_dense_layers", 0, LARGEST, 2)
    mixture = deepseek_mixture(fields, options, _MIXTURE | {"first_k_dense_replace": dense})
    return _convolutions(fields, options) | {"mixture": mixture}


LFM2_MOE = replace(
    LFM2,
    model_type="lfm2_moe",
    causal_lm="Lfm2MoeForCausalLM",
    title="LFM 2 MoE",
    experts=ExpertNames(
        router="feed_forward.gate",
        correction="feed_forward.expert_bias",
        each="feed_forward.experts",
        gate="w1",
        up="w3",
        down="w2",
    ),
    synonyms={"tie_embedding": "tie_word_embeddings"},
    harmless=TRAINING,
    read=_lfm2_moe,
)
