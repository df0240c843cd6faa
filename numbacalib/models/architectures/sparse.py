"""Further mixtures of experts, with other routers or norms than those of `mixtures` and `latent`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from numbacalib.models.architectures.latent import DEEPSEEK_V3, latent_attention
from numbacalib.models.architectures.mixtures import (
    CORRECTED,
    GLM4_MOE,
    MIXTRAL,
    QWEN3_MOE,
    TRAINING,
    deepseek_mixture,
    everywhere,
    layers_of_kinds,
    qwen_mixture,
)
from numbacalib.models.architectures.relatives import ERNIE4_5
from numbacalib.models.architectures.windowed import EXAONE4, OLMO2
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
from numbacalib.models.windows import (
    FULL,
    SLIDING,
    every,
    kinds_of_layers,
    no_windows,
    window_of,
    windows_of_kinds,
)
from numbacalib.spec.router import Routing

_MIXTURE: dict[str, Any] = {
    "n_routed_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1408,
    "first_k_dense_replace": 0,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
    "n_shared_experts": 1,
}


def _dots1(fields: Fields, options: Options) -> Options:
    """Read a window for the layers from ``max_window_layers`` on."""
    window, count = window_of(fields, 4096), options["num_layers"]
    first = fields.integer("max_window_layers", 0, LARGEST, 62)
    default = [SLIDING if window and layer >= first else FULL for layer in range(count)]
    windows = windows_of_kinds(kinds_of_layers(fields, count, window, default), window)
    mixture = deepseek_mixture(fields, options, _MIXTURE | {"norm_topk_prob": False})
    return windows | {"mixture": mixture, "qk_norm": True}


DOTS1 = Architecture(
    model_type="dots1",
    causal_lm="Dots1ForCausalLM",
    title="dots.llm1",
    experts=CORRECTED,
    defaults={"max_position_embeddings": 2048},
    biases=ATTENTION_BIASES,
    harmless=TRAINING,
    fixed={"moe_layer_freq": (1,), "scoring_func": ("noaux_tc", "sigmoid")},
    read=_dots1,
)


def _solar_open(fields: Fields, options: Options) -> Options:
    mixture = deepseek_mixture(fields, options, _MIXTURE | {"moe_intermediate_size": 1280})
    return no_windows(fields, options) | {"mixture": mixture}


SOLAR_OPEN = replace(
    GLM4_MOE,
    model_type="solar_open",
    causal_lm="SolarOpenForCausalLM",
    title="Solar Open",
    keys={"intermediate_size": "moe_intermediate_size"},  # no layer has a dense MLP
    defaults={
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "partial_rotary_factor": 1.0,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
    },
    harmless=(*TRAINING, "intermediate_size"),
    read=_solar_open,
)


def _olmoe(fields: Fields, options: Options) -> Options:
    fields.nothing("clip_qkv")
    normalized = fields.flag("norm_topk_prob", False)
    mixture = everywhere(fields, options, experts=64, kept=8, normalized=normalized)
    return no_windows(fields, options) | mixture | {"qk_norm": True}


OLMOE = Architecture(
    model_type="olmoe",
    causal_lm="OlmoeForCausalLM",
    title="OLMoE",
    experts=ExpertNames(),
    qk_norm="all",
    defaults={"max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    biases=ATTENTION_BIASES,
    harmless=TRAINING,
    read=_olmoe,
)


def _flex_olmo(fields: Fields, options: Options) -> Options:
    normalized = fields.flag("norm_topk_prob", False)
    mixture = everywhere(fields, options, experts=7, kept=5, normalized=normalized)
    return no_windows(fields, options) | mixture | {"qk_norm": True}


FLEX_OLMO = replace(
    OLMO2,
    model_type="flex_olmo",
    causal_lm="FlexOlmoForCausalLM",
    title="FlexOlmo",
    experts=ExpertNames(),
    defaults={"max_position_embeddings": 4096, "rope_theta": 5e5},
    harmless=TRAINING,
    read=_flex_olmo,
)


def _minimax_m2(fields: Fields, options: Options) -> Options:
    """Read experts with sigmoid routing and a bias for the choice, and refuse other routing."""
    fields.choice("scoring_func", ("sigmoid",), "sigmoid")
    fields.choice("use_routing_bias", (True,), True)
    fields.choice("use_qk_norm", (True,), True)
    fields.choice("qk_norm_type", ("per_layer",), "per_layer")
    turning, size = options["rotary_dim"], options["head_dim"]
    given = fields.integer("rotary_dim", 2, size, turning)
    if given % 2 or turning not in (size, given):
        raise fields.error(
            "rotary_dim", f"an even part of head_dim {size}, as partial_rotary_factor"
        )
    mixture = everywhere(fields, options, experts=256, kept=8, scoring="sigmoid")
    return no_windows(fields, options) | mixture | {"qk_norm": True, "rotary_dim": given}


MINIMAX_M2 = replace(
    MIXTRAL,
    model_type="minimax_m2",
    causal_lm="MiniMaxM2ForCausalLM",
    title="MiniMax M2",
    experts=replace(
        MIXTRAL.experts or ExpertNames(), correction="block_sparse_moe.e_score_correction_bias"
    ),
    qk_norm="all",
    defaults={
        "head_dim": 128,
        "max_position_embeddings": 196608,
        "num_key_value_heads": 8,
        "partial_rotary_factor": 1.0,
        "rope_theta": 5e6,
    },
    harmless=(
        *TRAINING,
        "attn_type_list",
        "mtp_transformer_layers",
        "num_mtp_modules",
        "shared_intermediate_size",
        "use_mtp",
    ),
    read=_minimax_m2,
)


def _glm4_moe_lite(fields: Fields, options: Options) -> Options:
    sizes = {"n_routed_experts": 64, "num_experts_per_tok": 4, "moe_intermediate_size": 1536}
    own = {"first_k_dense_replace": 1, "routed_scaling_factor": 1.8}
    fields.choice("topk_method", ("noaux_tc",), "noaux_tc")
    mixture = deepseek_mixture(fields, options, _MIXTURE | sizes | own)
    mixture = layers_of_kinds(fields, options, mixture)
    found = no_windows(fields, options) | latent_attention(fields, options, 768)
    return found | {"mixture": mixture}


GLM4_MOE_LITE = replace(
    DEEPSEEK_V3,
    model_type="glm4_moe_lite",
    causal_lm="Glm4MoeLiteForCausalLM",
    title="GLM 4.7 Flash",
    defaults={"head_dim": 64, "max_position_embeddings": 202752, "rms_norm_eps": 1e-5},
    read=_glm4_moe_lite,
)


def _youtu(fields: Fields, options: Options) -> Options:
    return no_windows(fields, options) | latent_attention(fields, options)


YOUTU = replace(
    DEEPSEEK_V3,
    model_type="youtu",
    causal_lm="YoutuForCausalLM",
    title="Youtu-LLM",
    experts=None,
    defaults={"head_dim": 64, "max_position_embeddings": 131072, "tie_word_embeddings": True},
    harmless=(*DEEPSEEK_V3.harmless, "embedding_initializer_range"),
    read=_youtu,
)


def _exaone_moe(fields: Fields, options: Options) -> Options:
    sizes = {"n_routed_experts": 64, "moe_intermediate_size": 1024}
    own = {"first_k_dense_replace": 1, "routed_scaling_factor": 2.5}
    shared = fields.integer("num_shared_experts", 0, LARGEST, 1)
    mixture = deepseek_mixture(
        fields, options, _MIXTURE | sizes | own | {"n_shared_experts": shared}
    )
    return EXAONE4.read(fields, options) | {"mixture": layers_of_kinds(fields, options, mixture)}


EXAONE_MOE = replace(
    EXAONE4,
    model_type="exaone_moe",
    causal_lm="ExaoneMoeForCausalLM",
    title="K-EXAONE",
    norms=PRE_NORMS,
    experts=replace(CORRECTED, correction="mlp.e_score_correction_bias"),
    harmless=(*EXAONE4.harmless, *TRAINING),
    read=_exaone_moe,
)


def _ernie4_5_moe(fields: Fields, options: Options) -> Options:
    """Read experts in some layers, with softmax routing and a bias for the choice."""
    count, size = options["num_layers"], fields.integer("moe_intermediate_size", 1, 1 << 24, 1536)
    first = fields.integer("moe_layer_start_index", 0, LARGEST, 1)
    last = fields.integer("moe_layer_end_index", -1, LARGEST, -1)
    last = count - 1 if last == -1 else last
    step = fields.integer("moe_layer_interval", 1, LARGEST, 1)
    experts = fields.integer("moe_num_experts", 1, 1 << 16, 64)
    fields.choice("moe_use_aux_free", (True,), True)
    fields.choice("use_bias", (False,), False)
    layers = range(count)
    mixture = Mixture(
        experts,
        size,
        tuple(first <= layer <= last and (layer + 1) % step == 0 for layer in layers),
        Routing(fields.integer("moe_k", 1, experts, 6)),
        size * fields.integer("moe_num_shared_experts", 0, 1 << 16, 2),
    )
    return no_windows(fields, options) | {"mixture": mixture}


ERNIE4_5_MOE = replace(
    ERNIE4_5,
    model_type="ernie4_5_moe",
    causal_lm="Ernie4_5_MoeForCausalLM",
    title="ERNIE 4.5 MoE",
    experts=ExpertNames(
        correction="mlp.moe_statics.e_score_correction_bias",
        correction_is_row=True,
        shared="mlp.shared_experts",
    ),
    defaults={**ERNIE4_5.defaults, "head_dim": None, "num_key_value_heads": 4},
    biases={},
    harmless=(*TRAINING, "moe_capacity", "moe_norm_min"),
    fixed={"moe_gate": ("topk",), "moe_norm_gate_logits": (True,), "use_rmsnorm": (True,)},
    read=_ernie4_5_moe,
)


def _qwen3_vl_moe(fields: Fields, options: Options) -> Options:
    fields.choice("norm_topk_prob", (True,), True)
    mixture = qwen_mixture(
        fields, options, experts=60, kept=4, size=1408, shared=0, normalized=True
    )
    return no_windows(fields, options) | {"mixture": mixture, "qk_norm": True}


QWEN3_VL_MOE = replace(
    QWEN3_MOE,
    model_type="qwen3_vl_moe_text",
    causal_lm="",
    title="Qwen 3 VL MoE",
    experts=ExpertNames(either_way=True),
    rope_names=RopeNames({"mrope": "default"}, ("mrope_section", "mrope_interleaved")),
    defaults={"max_position_embeddings": 128000, "num_key_value_heads": 16, "rope_theta": 5e5},
    read=_qwen3_vl_moe,
)


def _afmoe(fields: Fields, options: Options) -> Options:
    """Read windows, whose layers alone have a rotary embedding, and sigmoid routing with a bias."""
    window, count = window_of(fields, 1024), options["num_layers"]
    period = fields.integer("global_attn_every_n_layers", 1, LARGEST, 4)
    kinds = kinds_of_layers(fields, count, window, every(count, period) if window else None)
    fields.choice("score_func", ("sigmoid",), "sigmoid")
    fields.choice("route_norm", (True,), True)
    for key in ("n_group", "topk_group", "num_expert_groups", "num_limited_groups"):
        fields.choice(key, (1,), None)
    own = {
        "n_routed_experts": 64,
        "num_experts_per_tok": 6,
        "n_shared_experts": fields.integer("num_shared_experts", 0, LARGEST, 2),
        "first_k_dense_replace": fields.integer("num_dense_layers", 0, LARGEST, 1),
        "routed_scaling_factor": fields.number("route_scale", 1e-6, 1e6, 1.0),
    }
    scaled = fields.flag("mup_enabled", False)
    return windows_of_kinds(kinds, window) | {
        "mixture": deepseek_mixture(fields, options, _MIXTURE | own),
        "qk_norm": True,
        "rotary_layers": tuple(kind == SLIDING for kind in kinds),
        "embedding_scale": options["hidden_size"] ** 0.5 if scaled else 1.0,
    }


AFMOE = Architecture(
    model_type="afmoe",
    causal_lm="AfmoeForCausalLM",
    title="Arcee Trinity",
    linears=SEPARATE | {"attention_gate": "self_attn.gate_proj"},
    norms=PRE_NORMS
    | {
        "attention_output": "post_attention_layernorm",
        "mlp": "pre_mlp_layernorm",
        "mlp_output": "post_mlp_layernorm",
    },
    experts=replace(CORRECTED, router="mlp.router.gate", correction="mlp.expert_bias"),
    defaults={"head_dim": 128, "max_position_embeddings": 16384, "rms_norm_eps": 1e-5},
    biases=ATTENTION_BIASES,
    harmless=(*TRAINING, "load_balance_coeff", "use_grouped_mm"),
    read=_afmoe,
)
