"""Decoders with a mixture of experts in the place of some or all of their MLPs."""

from __future__ import annotations

from numbacalib.models.architectures.relatives import granite_factors
from numbacalib.models.description import (
    FULL,
    SLIDING,
    Architecture,
    ExpertNames,
    Options,
    kinds_of_layers,
    no_windows,
    window_of,
    windows_of_kinds,
)
from numbacalib.models.fields import LARGEST, Fields
from numbacalib.models.mixture import Mixture
from numbacalib.spec.router import Routing

_MOST = 1 << 16
"""Experts that a file may ask for."""
_TRAINING = (
    "output_router_logits",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "aux_loss_alpha",
    "seq_aux",
)
"""Keys of losses while training."""


def _counts(fields: Fields, experts: int, kept: int) -> tuple[int, int]:
    """Return how many experts there are and how many a token goes through, by either key and default."""
    keys = "num_local_experts", "num_experts", "n_routed_experts"
    given = [key for key in keys if key in fields]
    counts = {fields.integer(key, 1, _MOST) for key in given}
    if len(counts) > 1:
        raise ValueError(f"{' and '.join(given)}: expected the same, got {sorted(counts)}")
    count = counts.pop() if counts else experts
    return count, fields.integer("num_experts_per_tok", 1, count, kept)


def _everywhere(fields: Fields, options: Options, experts: int, kept: int) -> Options:
    """A mixture in every layer, as wide as ``intermediate_size``, whose weights sum to 1."""
    count, kept = _counts(fields, experts, kept)
    layers = (True,) * options["num_layers"]
    return {"mixture": Mixture(count, options["intermediate_size"], layers, Routing(kept))}


def _mixtral(fields: Fields, options: Options) -> Options:
    window = window_of(fields, None)
    kinds = kinds_of_layers(fields, options["num_layers"], window)
    return windows_of_kinds(kinds, window) | _everywhere(fields, options, experts=8, kept=2)


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
    harmless=_TRAINING,
    read=_mixtral,
)


def _qwen_mixture(
    fields: Fields, options: Options, *, experts: int, kept: int, size: int, shared: int
) -> Mixture:
    count, kept = _counts(fields, experts, kept)
    step = fields.integer("decoder_sparse_step", 1, LARGEST, 1)
    dense = fields.integers("mlp_only_layers", 0, default=None) or []
    layers = range(options["num_layers"])
    return Mixture(
        count,
        fields.integer("moe_intermediate_size", 1, 1 << 24, size),
        tuple(layer not in dense and (layer + 1) % step == 0 for layer in layers),
        Routing(kept, normalized=fields.flag("norm_topk_prob", False)),
        shared and fields.integer("shared_expert_intermediate_size", 1, 1 << 24, shared),
    )


def _qwen_window(fields: Fields) -> int | None:
    """The window where ``use_sliding_window`` says so; transformers writes 0 where it does not."""
    used = fields.flag("use_sliding_window", False)
    window: int | None = fields.integer("sliding_window", 1 if used else 0, LARGEST, None)
    if "sliding_window" not in fields:
        window = 4096
    return window if used else None


def _qwen2_moe(fields: Fields, options: Options) -> Options:
    """A window for every second layer before ``max_window_layers``, where there is one."""
    window = _qwen_window(fields)
    first = fields.integer("max_window_layers", 0, LARGEST, 28)
    count = options["num_layers"]
    default = [
        SLIDING if window and layer % 2 == 0 and layer < first else FULL for layer in range(count)
    ]
    kinds = kinds_of_layers(fields, count, window, default)
    sizes = {"experts": 60, "kept": 4, "size": 1408, "shared": 5632}
    mixture = _qwen_mixture(fields, options, **sizes)
    return windows_of_kinds(kinds, window) | {"mixture": mixture}


QWEN2_MOE = Architecture(
    model_type="qwen2_moe",
    causal_lm="Qwen2MoeForCausalLM",
    title="Qwen 1.5 and 2 MoE",
    experts=ExpertNames(shared="mlp.shared_expert", shared_gate="mlp.shared_expert_gate"),
    defaults={"max_position_embeddings": 32768, "num_key_value_heads": 16, "qkv_bias": True},
    biases={"attention": "qkv_bias"},
    harmless=_TRAINING,
    read=_qwen2_moe,
)


def _qwen3_moe(fields: Fields, options: Options) -> Options:
    """One window for all layers, where there is one."""
    window = _qwen_window(fields)
    fields.integer("max_window_layers", 0, LARGEST, 0)
    kinds = kinds_of_layers(fields, options["num_layers"], window)
    mixture = _qwen_mixture(fields, options, experts=128, kept=8, size=768, shared=0)
    return windows_of_kinds(kinds, window) | {"mixture": mixture, "qk_norm": True}


QWEN3_MOE = Architecture(
    model_type="qwen3_moe",
    causal_lm="Qwen3MoeForCausalLM",
    title="Qwen 3 MoE",
    experts=ExpertNames(),
    defaults={"max_position_embeddings": 32768, "num_key_value_heads": 4},
    biases={"attention": "attention_bias", "output": "attention_bias"},
    harmless=_TRAINING,
    read=_qwen3_moe,
)


def _granitemoe(fields: Fields, options: Options) -> Options:
    factors = granite_factors(fields)
    mixture = _everywhere(fields, options, experts=8, kept=2)
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
    biases={"attention": "attention_bias", "output": "attention_bias"},
    harmless=_TRAINING,
    read=_granitemoe,
)


def _sigmoid_mixture(fields: Fields, options: Options, *, size: int, dense: int) -> Mixture:
    """The router of DeepSeek V3: sigmoids, a correction of the choice, groups, shared experts."""
    count, kept = _counts(fields, experts=128, kept=8)
    groups = fields.integer("n_group", 1, count, 1)
    if count % groups:
        raise fields.error("n_group", f"a divisor of {count} experts")
    size = fields.integer("moe_intermediate_size", 1, 1 << 24, size)
    first = fields.integer("first_k_dense_replace", 0, LARGEST, dense)
    layers = tuple(layer >= first for layer in range(options["num_layers"]))
    routing = Routing(
        kept,
        "sigmoid",
        normalized=fields.flag("norm_topk_prob", True),
        factor=fields.number("routed_scaling_factor", 1e-6, 1e6, 1.0),
        groups=groups,
        kept_groups=fields.integer("topk_group", 1, groups, 1),
        group_best=min(2, count // groups),
    )
    shared = fields.integer("n_shared_experts", 0, _MOST, 1)
    return Mixture(count, size, layers, routing, shared * size)


def _glm4_moe(fields: Fields, options: Options) -> Options:
    mixture = _sigmoid_mixture(fields, options, size=1408, dense=1)
    return no_windows(fields, options) | {
        "mixture": mixture,
        "qk_norm": fields.flag("use_qk_norm", False),
    }


GLM4_MOE = Architecture(
    model_type="glm4_moe",
    causal_lm="Glm4MoeForCausalLM",
    title="GLM 4.5 and 4.6",
    experts=ExpertNames(correction="mlp.gate.e_score_correction_bias", shared="mlp.shared_experts"),
    defaults={
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
    },
    biases={"attention": "attention_bias"},
    harmless=_TRAINING,
    read=_glm4_moe,
)
