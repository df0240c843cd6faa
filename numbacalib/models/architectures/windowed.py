"""Relatives of Llama with windows, or layers without rotary embedding."""

from __future__ import annotations

from numbacalib.models.description import ATTENTION_BIASES, PRE_NORMS, Architecture, Options
from numbacalib.models.fields import Fields
from numbacalib.models.growth import Growth
from numbacalib.models.rope_parameters import RopeNames
from numbacalib.models.windows import (
    FULL,
    SLIDING,
    every,
    kinds_of_layers,
    no_windows,
    window_of,
    windows_of_kinds,
)


def _ministral(fields: Fields, options: Options) -> Options:
    window = window_of(fields, 4096)
    return windows_of_kinds(kinds_of_layers(fields, options["num_layers"], window), window)


MINISTRAL = Architecture(
    model_type="ministral",
    causal_lm="MinistralForCausalLM",
    title="Ministral",
    defaults={"max_position_embeddings": 131072, "num_key_value_heads": 8},
    read=_ministral,
)


def growth_of_queries(fields: Fields) -> Growth:
    """Read the growth of queries with their position."""
    rope = fields.object("rope_parameters")
    beta = rope.number("llama_4_scaling_beta", 0, 1e3)
    return Growth(beta, rope.integer("original_max_position_embeddings", 1))


def _ministral3(fields: Fields, options: Options) -> Options:
    """Read one window for all layers, if there is one, and the growth of queries."""
    growth, window = growth_of_queries(fields), window_of(fields, None)
    kinds = [FULL if window is None else SLIDING] * options["num_layers"]
    fields.nothing("layer_types")
    return windows_of_kinds(kinds, window) | {"query_growth": growth}


def _smollm3(fields: Fields, options: Options) -> Options:
    """Read every fourth layer as one without rotary embedding, with the window if there is one."""
    count = options["num_layers"]
    period = fields.integer("no_rope_layer_interval", 1, default=4)
    turns = [(index + 1) % period != 0 for index in range(count)]
    if (flags := fields.integers("no_rope_layers", 0, count, None)) is not None:
        turns = [bool(flag) for flag in flags]
    window = window_of(fields, None)
    if not fields.flag("use_sliding_window", False):
        window = None
    fields.integer("max_window_layers", 0, default=0)
    default = [FULL if window is None or turn else SLIDING for turn in turns]
    windows = windows_of_kinds(kinds_of_layers(fields, count, window, default), window)
    return windows | {"rotary_layers": tuple(turns)}


MINISTRAL3 = Architecture(
    model_type="ministral3",
    causal_lm="Ministral3ForCausalLM",
    title="Ministral 3",
    rope_names=RopeNames(others=("llama_4_scaling_beta", "max_position_embeddings")),
    defaults={
        "max_position_embeddings": 262144,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
    },
    read=_ministral3,
)


SMOLLM3 = Architecture(
    model_type="smollm3",
    causal_lm="SmolLM3ForCausalLM",
    title="SmolLM 3",
    defaults={
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rope_theta": 2e6,
        "tie_word_embeddings": True,
    },
    biases=ATTENTION_BIASES | {"mlp": "mlp_bias"},
    read=_smollm3,
)

_POST_NORMS = {
    "attention_output": "post_attention_layernorm",
    "mlp_output": "post_feedforward_layernorm",
    "query": "self_attn.q_norm",
    "key": "self_attn.k_norm",
}
_OLMO_DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5}


def _olmo2(fields: Fields, options: Options) -> Options:
    return no_windows(fields, options) | {"qk_norm": True}


OLMO2 = Architecture(
    model_type="olmo2",
    causal_lm="Olmo2ForCausalLM",
    title="OLMo 2",
    norms=_POST_NORMS,
    qk_norm="all",
    defaults=_OLMO_DEFAULTS,
    biases=ATTENTION_BIASES,
    read=_olmo2,
)


def _olmo3(fields: Fields, options: Options) -> Options:
    window = window_of(fields, 4096)
    count = options["num_layers"]
    kinds = kinds_of_layers(fields, count, window, every(count, 4) if window else None)
    return windows_of_kinds(kinds, window) | {"qk_norm": True}


OLMO3 = Architecture(
    model_type="olmo3",
    causal_lm="Olmo3ForCausalLM",
    title="OLMo 3",
    norms=_POST_NORMS,
    qk_norm="all",
    local_rope_key="rope_local_base_freq",
    defaults=_OLMO_DEFAULTS | {"rope_theta": 5e5, "local_rope_theta": 5e5},
    biases=ATTENTION_BIASES,
    read=_olmo3,
)


def _cwm(fields: Fields, options: Options) -> Options:
    """Read windows in all layers but every fourth, starting with the first."""
    if not ({"rope_scaling", "rope_parameters"} & set(fields)):
        raise fields.error("rope_scaling", "the rotary embedding's parameters")
    window, count = window_of(fields, 8192), options["num_layers"]
    default = [SLIDING if window and layer % 4 else FULL for layer in range(count)]
    return windows_of_kinds(kinds_of_layers(fields, count, window, default), window)


CWM = Architecture(
    model_type="cwm",
    causal_lm="CwmForCausalLM",
    title="Code World Model",
    defaults={
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
    },
    biases={"mlp": "mlp_bias"},
    read=_cwm,
)


def _exaone4(fields: Fields, options: Options) -> Options:
    """Read the windows; if there are any, only their layers have a rotary embedding."""
    window, count = window_of(fields, 4096), options["num_layers"]
    period = 4
    if "layer_types" not in fields:  # with layer_types it is a name, such as LLLG
        period = fields.integer("sliding_window_pattern", 1, default=4)
    kinds = kinds_of_layers(fields, count, window, every(count, period) if window else None)
    turns = tuple(window is None or kind == SLIDING for kind in kinds)
    return windows_of_kinds(kinds, window) | {"qk_norm": True, "rotary_layers": turns}


EXAONE4 = Architecture(
    model_type="exaone4",
    causal_lm="Exaone4ForCausalLM",
    title="EXAONE 4",
    norms=_POST_NORMS,
    defaults={
        "num_key_value_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
    },
    harmless=("sliding_window_pattern",),
    read=_exaone4,
)


def _hunyuan(fields: Fields, options: Options) -> Options:
    """Read the options; ``alpha`` of the scaling stretches the base at any sequence length."""
    rope = fields.object("rope_parameters", None) or fields.object("rope_scaling", None)
    alpha = rope.number("alpha", 1e-3, 1e9, None) if rope else None
    fields.nothing("use_cla", "use_mla", "position_embedding_xdrope")
    fields.choice("norm_type", ("rms",), "rms")
    if fields.integer("attention_head_dim", 2, 65_536, options["head_dim"]) != options["head_dim"]:
        raise fields.error("attention_head_dim", f"head_dim {options['head_dim']}")
    found = no_windows(fields, options) | {"qk_norm": True}
    if alpha and options["rope_scaling"]["rope_type"] == "dynamic":
        dim = options["rotary_dim"]
        found["rope_theta"] = options["rope_theta"] * alpha ** (dim / (dim - 2))
        found["rope_scaling"] = {"rope_type": "default"}
    return found


HUNYUAN = Architecture(
    model_type="hunyuan_v1_dense",
    causal_lm="HunYuanDenseV1ForCausalLM",
    title="Hunyuan dense",
    norms=PRE_NORMS | {"query": "self_attn.query_layernorm", "key": "self_attn.key_layernorm"},
    norm_after_rotary=True,
    rope_names=RopeNames(others=("alpha", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")),
    defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
    biases=ATTENTION_BIASES,
    harmless=(
        *("eod_token_id", "im_end_id", "im_newline_id", "im_start_id", "mask_init_id", "pad_id"),
        *("text_end_id", "text_start_id", "video_end_id", "video_start_id", "num_media_embeds"),
        *("org_vocab_size", "unused_token_offset", "class_num", "dense_list", "pool_type"),
        *("cla_share_factor", "use_qk_norm", "use_rotary_pos_emb", "enable_lm_head_fp32"),
    ),
    read=_hunyuan,
)
