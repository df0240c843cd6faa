"""Relatives of Llama with other activations, multipliers, norms or rotary pairs."""

from __future__ import annotations

from dataclasses import replace

from numbacalib.models.description import (
    ATTENTION_BIASES,
    PRE_NORMS,
    SEPARATE,
    Architecture,
    Options,
)
from numbacalib.models.fields import Fields
from numbacalib.models.rope_parameters import RopeNames
from numbacalib.models.windows import (
    SLIDING,
    every,
    kinds_of_layers,
    no_windows,
    window_of,
    windows_of_kinds,
)

_ALL = ATTENTION_BIASES | {"mlp": "mlp_bias"}


def without_gate(up: str, down: str) -> dict[str, str]:
    """Return the linear layers of a block with an ungated MLP, whose layers have these names."""
    linears = {role: name for role, name in SEPARATE.items() if role != "gate"}
    return linears | {"up": up, "down": down}


ARCEE = Architecture(
    model_type="arcee",
    causal_lm="ArceeForCausalLM",
    title="Arcee AFM",
    linears=without_gate("mlp.up_proj", "mlp.down_proj"),
    defaults={"hidden_act": "relu2", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    biases=_ALL,
)

SEED_OSS = Architecture(
    model_type="seed_oss",
    causal_lm="SeedOssForCausalLM",
    title="Seed-OSS",
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 524288,
        "attention_bias": True,
    },
    biases={"attention": "attention_bias", "output": "attention_out_bias", "mlp": "mlp_bias"},
    harmless=("residual_dropout",),
)

INTERNLM3 = Architecture(
    model_type="internlm3",
    causal_lm="InternLM3ForCausalLM",
    title="InternLM 3",
    defaults={
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
    },
    biases=dict.fromkeys(("attention", "output"), ("qkv_bias", "attention_bias"))
    | {"mlp": ("bias", "mlp_bias")},
)

HELIUM = Architecture(
    model_type="helium",
    causal_lm="HeliumForCausalLM",
    title="Helium",
    interleaved=True,
    defaults={
        "num_key_value_heads": 20,
        "head_dim": 128,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-8,
        "rope_theta": 1e5,
    },
    biases={"attention": "attention_bias", "mlp": "mlp_bias"},
)

ERNIE4_5 = Architecture(
    model_type="ernie4_5",
    causal_lm="Ernie4_5ForCausalLM",
    title="ERNIE 4.5 dense",
    interleaved=True,
    defaults={
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "tie_word_embeddings": True,
    },
    biases=dict.fromkeys(("attention", "output", "mlp"), "use_bias"),
)

_GLM = {
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1.5625e-7,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
}
_GATE_UP = SEPARATE | dict.fromkeys(("gate", "up"), "mlp.gate_up_proj")

GLM = Architecture(
    model_type="glm",
    causal_lm="GlmForCausalLM",
    title="GLM-4 9B and GLM-Edge",
    linears=_GATE_UP,
    interleaved=True,
    defaults=_GLM,
    biases={"attention": "attention_bias"},
)

GLM4 = Architecture(
    model_type="glm4",
    causal_lm="Glm4ForCausalLM",
    title="GLM-4-0414 and GLM-Z1",
    linears=_GATE_UP,
    norms=PRE_NORMS
    | {"attention_output": "post_self_attn_layernorm", "mlp_output": "post_mlp_layernorm"},
    interleaved=True,
    defaults=_GLM,
    biases={"attention": "attention_bias"},
)


GLM4V = replace(
    GLM4,
    model_type="glm4v_text",
    causal_lm="",
    title="GLM-4.1V",
    defaults={key: value for key, value in _GLM.items() if key != "head_dim"},
    # M-RoPE, whose three positions are equal for text
    rope_names=RopeNames({"mrope": "default"}, ("mrope_section",)),
)


def granite_factors(fields: Fields) -> Options:
    """Read the four multipliers of Granite."""

    def factor(key: str) -> float:
        return float(fields.number(key, 1e-6, 1e6, 1.0))

    return {
        "embedding_scale": factor("embedding_multiplier"),
        "residual_scale": factor("residual_multiplier"),
        "attention_scale": factor("attention_multiplier"),
        "logit_scale": 1 / factor("logits_scaling"),
    }


def _granite(fields: Fields, options: Options) -> Options:
    return no_windows(fields, options) | granite_factors(fields)


GRANITE = Architecture(
    model_type="granite",
    causal_lm="GraniteForCausalLM",
    title="Granite 3 dense",
    defaults={"max_position_embeddings": 2048},
    biases=_ALL,
    read=_granite,
)


def _hyperclovax(fields: Fields, options: Options) -> Options:
    """Read Granite's multipliers, but that of logits multiplies, and scores' default is head_dim's."""
    fields.choice("use_post_norm", (True,), True)
    found = no_windows(fields, options) | granite_factors(fields)
    if fields.number("attention_multiplier", 1e-6, 1e6, None) is None:
        found["attention_scale"] = None
    return found | {"logit_scale": fields.number("logits_scaling", 1e-6, 1e6, 1.0)}


HYPERCLOVAX = replace(
    GRANITE,
    model_type="hyperclovax",
    causal_lm="HyperCLOVAXForCausalLM",
    title="HyperCLOVA X",
    norms=PRE_NORMS | {"attention_output": "post_norm1", "mlp_output": "post_norm2"},
    read=_hyperclovax,
)

JAIS2 = replace(
    ARCEE,
    model_type="jais2",
    causal_lm="Jais2ForCausalLM",
    title="Jais 2",
    norm="layer",
    norm_bias=True,
    keys={"rms_norm_eps": "layer_norm_eps"},
    defaults={
        "hidden_act": "relu2",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "attention_bias": True,
        "mlp_bias": True,
    },
)


def _starcoder2(fields: Fields, options: Options) -> Options:
    window = window_of(fields, None)
    return windows_of_kinds(kinds_of_layers(fields, options["num_layers"], window), window)


STARCODER2 = Architecture(
    model_type="starcoder2",
    causal_lm="Starcoder2ForCausalLM",
    title="StarCoder 2",
    linears=without_gate("mlp.c_fc", "mlp.c_proj"),
    norm="layer",
    norm_bias=True,
    keys={"rms_norm_eps": "norm_epsilon"},
    defaults={
        "hidden_act": "gelu_pytorch_tanh",
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "use_bias": True,
    },
    biases=dict.fromkeys(("attention", "output", "mlp"), "use_bias"),
    harmless=(
        *("residual_dropout", "embedding_dropout", "mlp_type", "norm_type"),
        *("activation_function", "layer_norm_epsilon"),  # hidden_act, norm_epsilon are used
        *("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"),
    ),
    fixed={"scale_attn_weights": (True,)},
    read=_starcoder2,
)

_COHERE = {
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
_COHERE_NORMS = {
    "attention": "input_layernorm",
    "query": "self_attn.q_norm",
    "key": "self_attn.k_norm",
}


def _logit_scale(fields: Fields) -> Options:
    return {"logit_scale": fields.number("logit_scale", 1e-6, 1e6, 0.0625)}


def _cohere(fields: Fields, options: Options) -> Options:
    qk_norm = {"qk_norm": fields.flag("use_qk_norm", False)}
    return no_windows(fields, options) | _logit_scale(fields) | qk_norm


COHERE = Architecture(
    model_type="cohere",
    causal_lm="CohereForCausalLM",
    title="Command R and Aya",
    norms=_COHERE_NORMS,
    norm="layer",
    qk_norm="heads",
    interleaved=True,
    parallel=True,
    keys={"rms_norm_eps": "layer_norm_eps"},
    defaults=_COHERE | {"rope_theta": 5e5},
    biases=ATTENTION_BIASES,
    read=_cohere,
)


def _cohere2(fields: Fields, options: Options) -> Options:
    """Read windows; only layers with windows have a rotary embedding."""
    window, count = window_of(fields, 4096), options["num_layers"]
    period = fields.integer("sliding_window_pattern", 1, default=4)
    kinds = kinds_of_layers(fields, count, window, every(count, period) if window else None)
    turns = {"rotary_layers": tuple(kind == SLIDING for kind in kinds)}
    return windows_of_kinds(kinds, window) | _logit_scale(fields) | turns


COHERE2 = Architecture(
    model_type="cohere2",
    causal_lm="Cohere2ForCausalLM",
    title="Command R7B and Command A",
    norms=_COHERE_NORMS,
    norm="layer",
    interleaved=True,
    parallel=True,
    keys={"rms_norm_eps": "layer_norm_eps"},
    defaults=_COHERE,
    biases=ATTENTION_BIASES,
    harmless=(
        *("cache_implementation", "order_of_interleaved_layers", "position_embedding_type"),
        "layer_switch",  # sliding_window_pattern is used
    ),
    fixed={
        "rotary_pct": (1, 1.0),
        "use_embedding_sharing": (True,),
        "use_gated_activation": (True,),
        "use_parallel_block": (True,),
        "use_parallel_embedding": (True,),
    },
    read=_cohere2,
)

NEMOTRON = Architecture(
    model_type="nemotron",
    causal_lm="NemotronForCausalLM",
    title="Nemotron 3, 4 and Minitron",
    linears=without_gate("mlp.up_proj", "mlp.down_proj"),
    norm="layer",
    norm_bias=True,
    norm_offset=1.0,
    keys={"rms_norm_eps": "norm_eps"},
    defaults={
        "hidden_act": "relu2",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
    },
    biases=_ALL,
)


def _stablelm(fields: Fields, options: Options) -> Options:
    fields.nothing("use_parallel_residual", "qk_layernorm")
    return no_windows(fields, options)


STABLELM = Architecture(
    model_type="stablelm",
    causal_lm="StableLmForCausalLM",
    title="StableLM 3B and 2 1.6B",
    norm="layer",
    norm_bias=True,
    keys={"rms_norm_eps": "layer_norm_eps"},
    defaults={
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "partial_rotary_factor": 0.25,
    },
    biases={"attention": "use_qkv_bias"},
    harmless=("hidden_dropout", "norm_eps", "rotary_scaling_factor"),
    read=_stablelm,
)
