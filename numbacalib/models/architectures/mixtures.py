"""Decoders with a mixture of experts in place of some or all of their MLPs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from numbacalib.models.architectures.relatives import granite_factors
from numbacalib.models.description import ATTENTION_BIASES, Architecture, ExpertNames, Options
from numbacalib.models.fields import LARGEST, Fields
from numbacalib.models.mixture import Mixture
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

_MOST = 1 << 16
"""Largest number of experts."""
TRAINING = (
    "output_router_logits",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "aux_loss_alpha",
    "seq_aux",
)
"""Keys of losses in training."""


def _counts(fields: Fields, experts: int, kept: int | None) -> tuple[int, int]:
    """Read the number of experts, under any of its keys, and of experts per token, with defaults."""
    keys = "num_local_experts", "num_experts", "n_routed_experts"
    given = [key for key in keys if key in fields]
    counts = {fields.integer(key, 1, _MOST) for key in given}
    if len(counts) > 1:
        raise ValueError(f"{' and '.join(given)}: expected the same, got {sorted(counts)}")
    count = counts.pop() if counts else experts
    default = {} if kept is None else {"default": kept}
    return count, fields.integer("num_experts_per_tok", 1, count, **default)


def everywhere(
    fields: Fields,
    options: Options,
    experts: int,
    kept: int,
    *,
    router_bias: bool = False,
    scoring: str = "softmax",
    normalized: bool = True,
) -> Options:
    """Read a mixture in every layer, with experts of width ``intermediate_size``."""
    count, kept = _counts(fields, experts, kept)
    layers, size = (True,) * options["num_layers"], options["intermediate_size"]
    mixture = Mixture(
        count, size, layers, Routing(kept, scoring, normalized), router_bias=router_bias
    )
    return {"mixture": mixture}


def _mixtral(fields: Fields, options: Options) -> Options:
    window = window_of(fields, None)
    kinds = kinds_of_layers(fields, options["num_layers"], window)
    return windows_of_kinds(kinds, window) | everywhere(fields, options, experts=8, kept=2)


_BLOCK_SPARSE = ExpertNames(
    router="block_sparse_moe.gate",
    each="block_sparse_moe.experts",
    gate="w1",
    up="w3",
    down="w2",
)

MIXTRAL = Architecture(
    model_type="mixtral",
    causal_lm="MixtralForCausalLM",
    title="Mixtral",
    experts=_BLOCK_SPARSE,
    defaults={
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
    },
    harmless=TRAINING,
    read=_mixtral,
)


def qwen_mixture(
    fields: Fields,
    options: Options,
    *,
    experts: int,
    kept: int,
    size: int,
    shared: int,
    normalized: bool = False,
) -> Mixture:
    """Read Qwen's mixture, by default in every layer, with a shared MLP.

    Parameters
    ----------
    fields : Fields
    options : Options
    experts, kept, size, shared : int
        transformers' defaults; no shared MLP if `shared` is 0.
    normalized : bool
        Default of ``norm_topk_prob``.
    """
    count, kept = _counts(fields, experts, kept)
    step = fields.integer("decoder_sparse_step", 1, LARGEST, 1)
    dense = fields.integers("mlp_only_layers", 0, default=None) or []
    layers = range(options["num_layers"])
    return Mixture(
        count,
        fields.integer("moe_intermediate_size", 1, 1 << 24, size),
        tuple(layer not in dense and (layer + 1) % step == 0 for layer in layers),
        Routing(kept, normalized=fields.flag("norm_topk_prob", normalized)),
        shared and fields.integer("shared_expert_intermediate_size", 1, 1 << 24, shared),
    )


def _qwen_window(fields: Fields) -> int | None:
    """Read the window if ``use_sliding_window`` is true; transformers writes 0 if it is not."""
    used = fields.flag("use_sliding_window", False)
    window: int | None = fields.integer("sliding_window", 1 if used else 0, LARGEST, None)
    if "sliding_window" not in fields:
        window = 4096
    return window if used else None


def _qwen2_moe(fields: Fields, options: Options) -> Options:
    """Read a window for every second layer before ``max_window_layers``, if there is one."""
    window = _qwen_window(fields)
    first = fields.integer("max_window_layers", 0, LARGEST, 28)
    count = options["num_layers"]
    default = [
        SLIDING if window and layer % 2 == 0 and layer < first else FULL for layer in range(count)
    ]
    kinds = kinds_of_layers(fields, count, window, default)
    mixture = qwen_mixture(fields, options, experts=60, kept=4, size=1408, shared=5632)
    return windows_of_kinds(kinds, window) | {"mixture": mixture}


QWEN2_MOE = Architecture(
    model_type="qwen2_moe",
    causal_lm="Qwen2MoeForCausalLM",
    title="Qwen 1.5 and 2 MoE",
    experts=ExpertNames(shared="mlp.shared_expert", shared_gate="mlp.shared_expert_gate"),
    defaults={"max_position_embeddings": 32768, "num_key_value_heads": 16, "qkv_bias": True},
    biases={"attention": "qkv_bias"},
    harmless=TRAINING,
    read=_qwen2_moe,
)


def _qwen3_moe(fields: Fields, options: Options) -> Options:
    """Read one window for all layers, if there is one."""
    window = _qwen_window(fields)
    fields.integer("max_window_layers", 0, LARGEST, 0)
    kinds = kinds_of_layers(fields, options["num_layers"], window)
    mixture = qwen_mixture(fields, options, experts=128, kept=8, size=768, shared=0)
    return windows_of_kinds(kinds, window) | {"mixture": mixture, "qk_norm": True}


QWEN3_MOE = Architecture(
    model_type="qwen3_moe",
    causal_lm="Qwen3MoeForCausalLM",
    title="Qwen 3 MoE",
    experts=ExpertNames(),
    defaults={"max_position_embeddings": 32768, "num_key_value_heads": 4},
    biases=ATTENTION_BIASES,
    harmless=TRAINING,
    fixed={"use_qk_norm": (True,), "shared_expert_intermediate_size": (0,)},
    read=_qwen3_moe,
)


def _granitemoe(fields: Fields, options: Options) -> Options:
    factors = granite_factors(fields)
    mixture = everywhere(fields, options, experts=8, kept=2)
    return no_windows(fields, options) | factors | mixture


GRANITEMOE = Architecture(
    model_type="granitemoe",
    causal_lm="GraniteMoeForCausalLM",
    title="Granite 3 MoE",
    experts=ExpertNames(
        router="block_sparse_moe.router.layer",
        each="block_sparse_moe.experts",
        gate="w1",
        up="w3",
        down="w2",
        fused_gate_up="block_sparse_moe.input_linear.weight",
        fused_down="block_sparse_moe.output_linear.weight",
    ),
    defaults={"max_position_embeddings": 2048},
    biases=ATTENTION_BIASES,
    harmless=TRAINING,
    read=_granitemoe,
)


GLM_MIXTURE: Mapping[str, Any] = {
    "n_routed_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1408,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
    "n_shared_experts": 1,
}


CORRECTED = ExpertNames(correction="mlp.gate.e_score_correction_bias", shared="mlp.shared_experts")


def deepseek_mixture(
    fields: Fields, options: Options, defaults: Mapping[str, Any], scoring: str = "sigmoid"
) -> Mixture:
    """Read DeepSeek V3's mixture: sigmoid scores, a bias for the choice, groups, shared experts."""
    count, kept = _counts(fields, defaults["n_routed_experts"], defaults["num_experts_per_tok"])
    groups = _groups(fields, count, defaults["n_group"])
    routing = Routing(
        kept,
        scoring,
        normalized=fields.flag("norm_topk_prob", defaults["norm_topk_prob"]),
        factor=fields.number("routed_scaling_factor", 1e-6, 1e6, defaults["routed_scaling_factor"]),
        groups=groups,
        kept_groups=fields.integer("topk_group", 1, groups, min(groups, defaults["topk_group"])),
        group_best=min(2, count // groups),
    )
    return _behind_dense_layers(fields, options, defaults, count, routing)


def grouped_mixture(fields: Fields, options: Options, defaults: Mapping[str, Any]) -> Mixture:
    """Read DeepSeek V2's mixture: softmax weights, never renormalized, and groups."""
    count, kept = _counts(fields, defaults["n_routed_experts"], None)
    method = fields.choice("topk_method", ("greedy", "group_limited_greedy"), "greedy")
    groups, kept_groups = _groups(fields, count, None), fields.integer("topk_group", 1, count, None)
    if method == "greedy":
        groups = kept_groups = 1
    elif groups is None or kept_groups is None:
        raise fields.error("topk_method", "n_group and topk_group beside group_limited_greedy")
    fields.choice("norm_topk_prob", (False,), False)  # transformers ignores it, others do not
    routing = Routing(
        kept,
        normalized=False,
        factor=fields.number("routed_scaling_factor", 1e-6, 1e6, 1.0),
        groups=groups,
        kept_groups=kept_groups,
    )
    return _behind_dense_layers(fields, options, defaults, count, routing)


def _groups(fields: Fields, count: int, default: int | None) -> Any:
    groups = fields.integer("n_group", 1, count, default)
    if groups and count % groups:
        raise fields.error("n_group", f"a divisor of {count} experts")
    return groups


def _behind_dense_layers(
    fields: Fields, options: Options, defaults: Mapping[str, Any], count: int, routing: Routing
) -> Mixture:
    """Read a mixture in all but the first layers, with shared experts."""
    size = fields.integer("moe_intermediate_size", 1, 1 << 24, defaults["moe_intermediate_size"])
    first = fields.integer("first_k_dense_replace", 0, LARGEST, defaults["first_k_dense_replace"])
    layers = tuple(layer >= first for layer in range(options["num_layers"]))
    shared = fields.integer("n_shared_experts", 0, _MOST, defaults["n_shared_experts"])
    return Mixture(count, size, layers, routing, shared * size)


def layers_of_kinds(fields: Fields, options: Options, mixture: Mixture) -> Mixture:
    """Return the mixture in the layers that ``mlp_layer_types`` calls sparse, if a file has this key."""
    kinds, count = fields.texts("mlp_layer_types", None), options["num_layers"]
    if kinds is None:
        return mixture
    if len(kinds) != count or set(kinds) - {"dense", "sparse"}:
        raise fields.error("mlp_layer_types", f"dense or sparse for each of {count} layers")
    return replace(mixture, layers=tuple(kind == "sparse" for kind in kinds))


def _glm4_moe(fields: Fields, options: Options) -> Options:
    mixture = deepseek_mixture(fields, options, GLM_MIXTURE)
    return no_windows(fields, options) | {
        "mixture": mixture,
        "qk_norm": fields.flag("use_qk_norm", False),
    }


GLM4_MOE = Architecture(
    model_type="glm4_moe",
    causal_lm="Glm4MoeForCausalLM",
    title="GLM 4.5 and 4.6",
    experts=CORRECTED,
    defaults={
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
    },
    biases={"attention": "attention_bias"},
    harmless=TRAINING,
    read=_glm4_moe,
)


def _gpt_oss(fields: Fields, options: Options) -> Options:
    """Read a window in every second layer, and experts with clamped gates."""
    if not ({"rope_scaling", "rope_parameters"} & set(fields)):
        # transformers' default is the published models' scaling, that of other runtimes none
        raise fields.error("rope_scaling", "the rotary embedding's parameters")
    window, count = window_of(fields, 128), options["num_layers"]
    kinds = kinds_of_layers(fields, count, window, every(count, 2) if window else None)
    clamp = (
        fields.number("swiglu_alpha", 1e-3, 1e3, 1.702),
        fields.number("swiglu_limit", 1e-3, 1e6, 7.0),
    )
    mixture = everywhere(fields, options, experts=128, kept=4, router_bias=True)
    return windows_of_kinds(kinds, window) | mixture | {"gate_clamp": clamp}


GPT_OSS = Architecture(
    model_type="gpt_oss",
    causal_lm="GptOssForCausalLM",
    title="GPT-OSS",
    experts=ExpertNames(router="mlp.router", transposed=True, interleaved=True),
    sinks="self_attn.sinks",
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "attention_bias": True,
    },
    biases=ATTENTION_BIASES | {"mlp": True},
    harmless=(*TRAINING, "experts_per_token", "initial_context_length"),
    read=_gpt_oss,
)
