"""Further mixtures of experts, most of them with a shared MLP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from numbacalib.models.architectures.mixtures import (
    GLM4_MOE,
    GLM_MIXTURE,
    GRANITEMOE,
    QWEN3_MOE,
    TRAINING,
    deepseek_mixture,
    everywhere,
    layers_of_kinds,
    qwen_mixture,
)
from numbacalib.models.architectures.relatives import granite_factors
from numbacalib.models.architectures.windowed import HUNYUAN
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
from numbacalib.models.rope_parameters import RopeNames
from numbacalib.models.windows import FULL, kinds_of_layers, no_windows, window_of, windows_of_kinds
from numbacalib.spec.router import Routing


def _hunyuan_moe(fields: Fields, options: Options) -> Options:
    """Read experts of equal width in all layers, and one shared; files may list counts for each layer."""
    count, size = options["num_layers"], options["intermediate_size"]
    experts = fields.equal_integers("num_experts", 1, 1 << 16, count, 1)
    kept = fields.equal_integers("moe_topk", 1, experts, count, 1)
    for key, expected in (("moe_intermediate_size", size), ("num_shared_expert", 1)):
        fields.equal_integers(key, expected, expected, count, expected)
    for key in ("use_mixed_mlp_moe", "norm_topk_prob"):
        fields.choice(key, (True,), True)
    fields.choice("moe_layer_num_skipped", (0,), 0)
    mixture = Mixture(experts, size, (True,) * count, Routing(kept), size)
    return HUNYUAN.read(fields, options) | {"mixture": mixture}


HUNYUAN_MOE = replace(
    HUNYUAN,
    model_type="hunyuan_v1_moe",
    causal_lm="HunYuanMoEV1ForCausalLM",
    title="Hunyuan A13B",
    experts=ExpertNames(router="mlp.gate.wg", shared="mlp.shared_mlp"),
    harmless=(*HUNYUAN.harmless, *TRAINING),
    read=_hunyuan_moe,
)


def _glm4v_moe(fields: Fields, options: Options) -> Options:
    mixture = deepseek_mixture(fields, options, GLM_MIXTURE)
    return no_windows(fields, options) | {"mixture": mixture}


GLM4V_MOE = replace(
    GLM4_MOE,
    model_type="glm4v_moe_text",
    causal_lm="",
    title="GLM 4.5V and 4.6V",
    rope_names=RopeNames({"mrope": "default"}, ("mrope_section",)),
    defaults={**GLM4_MOE.defaults, "max_position_embeddings": 65536, "attention_bias": True},
    read=_glm4v_moe,
)

_HY_V3: dict[str, Any] = {
    "n_routed_experts": 192,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1536,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
}


def _hy_v3(fields: Fields, options: Options) -> Options:
    own = {
        "n_shared_experts": fields.integer("num_shared_experts", 0, 1 << 16, 1),
        "routed_scaling_factor": fields.number("router_scaling_factor", 1e-6, 1e6, 2.826),
    }
    mixture = layers_of_kinds(fields, options, deepseek_mixture(fields, options, _HY_V3 | own))
    return no_windows(fields, options) | {"mixture": mixture, "qk_norm": True}


HY_V3 = Architecture(
    model_type="hy_v3",
    causal_lm="HYV3ForCausalLM",
    title="Hy 3",
    experts=ExpertNames(
        router="mlp.router.gate", correction="mlp.expert_bias", shared="mlp.shared_mlp"
    ),
    defaults={
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 11_158_840.0,
    },
    biases=ATTENTION_BIASES | {"mlp": "mlp_bias"},
    harmless=(*TRAINING, "enable_moe_fp32_combine"),  # sums of experts are float32 here
    read=_hy_v3,
)


def _sarvam_moe(fields: Fields, options: Options) -> Options:
    own = {
        "moe_intermediate_size": 1024,
        "num_experts_per_tok": 6,
        "routed_scaling_factor": 2.5,
    }
    mixture = deepseek_mixture(fields, options, {**GLM_MIXTURE, **own})
    normalized = fields.flag("use_qk_norm", True)
    return no_windows(fields, options) | {"mixture": mixture, "qk_norm": normalized}


SARVAM_MOE = replace(
    GLM4_MOE,
    model_type="sarvam_moe",
    title="Sarvam 30B",
    renamed={"model.word_embeddings.": "model.embed_tokens."},
    linears=SEPARATE
    | dict.fromkeys(("query", "key", "value"), "attention.query_key_value")
    | {"output": "attention.dense"},
    norms=PRE_NORMS | {"query": "attention.query_layernorm", "key": "attention.key_layernorm"},
    experts=ExpertNames(correction="mlp.gate.expert_bias", shared="mlp.shared_experts"),
    defaults={
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 4,
        "partial_rotary_factor": 1.0,
        "rope_theta": 8e6,
    },
    harmless=(*TRAINING, "num_mtp_layers"),
    read=_sarvam_moe,
)

_SHARED_LINEARS = SEPARATE | {
    "gate": "shared_mlp.input_linear",
    "up": "shared_mlp.input_linear",
    "down": "shared_mlp.output_linear",
}


def _granitemoeshared(fields: Fields, options: Options) -> Options:
    shared = fields.integer("shared_intermediate_size", 0, 1 << 24, 0)
    found = everywhere(fields, options, experts=8, kept=2)
    mixture = replace(found["mixture"], shared_size=shared)
    return no_windows(fields, options) | granite_factors(fields) | {"mixture": mixture}


GRANITEMOE_SHARED = replace(
    GRANITEMOE,
    model_type="granitemoeshared",
    causal_lm="GraniteMoeSharedForCausalLM",
    title="Granite 3 MoE with a shared expert",
    linears=_SHARED_LINEARS,
    read=_granitemoeshared,
)


def _laguna(fields: Fields, options: Options) -> Options:
    """Read windows, query heads by layer, and sigmoid routing with a bias for the choice."""
    count, kv_heads = options["num_layers"], options["num_kv_heads"]
    window = fields.integer("sliding_window", 1, LARGEST, 512)
    kinds = kinds_of_layers(fields, count, window, [FULL] * count)
    heads = fields.integers("num_attention_heads_per_layer", 1, count, None)
    if heads and any(own % kv_heads for own in heads):
        expected = f"multiples of num_key_value_heads {kv_heads}"
        raise fields.error("num_attention_heads_per_layer", expected)
    fields.choice("gating", (True, "per-head"), True)
    fields.nothing("moe_apply_router_weight_on_input")
    fields.choice("moe_router_logit_softcapping", (0.0, 0), 0.0)
    experts = fields.integer("num_experts", 1, 1 << 16, 256)
    routing = Routing(
        fields.integer("num_experts_per_tok", 1, experts, 8),
        "sigmoid",
        factor=fields.number("moe_routed_scaling_factor", 1e-6, 1e6, 1.0),
    )
    mixture = Mixture(
        experts,
        fields.integer("moe_intermediate_size", 1, 1 << 24, 512),
        (False, *(True,) * (count - 1)),
        routing,
        fields.integer("shared_expert_intermediate_size", 1, 1 << 24, 512),
    )
    return windows_of_kinds(kinds, window) | {
        "mixture": layers_of_kinds(fields, options, mixture),
        "query_heads": tuple(heads or ()),
        "qk_norm": True,
    }


LAGUNA = Architecture(
    model_type="laguna",
    causal_lm="LagunaForCausalLM",
    title="Laguna",
    experts=ExpertNames(
        correction="mlp.experts.e_score_correction_bias", shared="mlp.shared_expert"
    ),
    head_gate="self_attn.g_proj",
    head_gate_activation="softplus",
    local_rope_key="rope_local_base_freq",
    defaults={
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rope_theta": 5e5,
        "local_rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
        "local_partial_rotary_factor": 1.0,
    },
    biases=ATTENTION_BIASES,
    harmless=TRAINING,
    read=_laguna,
)


def _mellum(fields: Fields, options: Options) -> Options:
    """Read windows by kind of layer, each kind with its own rotary embedding."""
    window = window_of(fields, 1024)
    kinds = fields.texts("layer_types", None)
    if kinds is None:
        window = None
    found = windows_of_kinds(kinds_of_layers(fields, options["num_layers"], window), window)
    mixture = qwen_mixture(fields, options, experts=64, kept=8, size=896, shared=0, normalized=True)
    return found | {"mixture": layers_of_kinds(fields, options, mixture), "qk_norm": True}


MELLUM = replace(
    QWEN3_MOE,
    model_type="mellum",
    causal_lm="MellumForCausalLM",
    title="Mellum 2",
    norms=PRE_NORMS,
    experts=ExpertNames(),
    local_rope_key="rope_local_base_freq",
    defaults={
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 4,
        "rope_theta": 5e5,
        "local_rope_theta": 1e4,
    },
    harmless=(*TRAINING, "mtp_layer_types", "mtp_mlp_layer_types", "num_mtp_layers"),
    read=_mellum,
)
