"""Decoders whose layers mostly have a gated delta net in place of attention."""

from __future__ import annotations

from dataclasses import replace

from numbacalib.models.architectures.mixtures import TRAINING, qwen_mixture
from numbacalib.models.delta_net import DeltaNet
from numbacalib.models.description import (
    ATTENTION_BIASES,
    SEPARATE,
    Architecture,
    DeltaNames,
    ExpertNames,
    Options,
)
from numbacalib.models.fields import LARGEST, Fields
from numbacalib.models.mixture import Mixture
from numbacalib.models.rope_parameters import RopeNames
from numbacalib.models.windows import FULL

_LINEAR = "linear_attention"
_GATED = {role.replace("query", "query_gate"): name for role, name in SEPARATE.items()}
_SHARED = ExpertNames(shared="mlp.shared_expert", shared_gate="mlp.shared_expert_gate")


def _kinds(fields: Fields, count: int) -> list[str]:
    """Read the kind of each layer; by default every fourth has attention."""
    period = fields.integer("full_attention_interval", 1, LARGEST, 4)
    kinds = fields.texts("layer_types", None)
    if kinds is None:
        return [FULL if (index + 1) % period == 0 else _LINEAR for index in range(count)]
    if len(kinds) != count or set(kinds) - {FULL, _LINEAR}:
        raise fields.error("layer_types", f"{FULL} or {_LINEAR} for each of {count} layers")
    return list(kinds)


def _delta_net(fields: Fields, options: Options) -> Options:
    """Read the sizes of the gated delta net, and check that attention's outputs are gated."""
    fields.choice("attn_output_gate", (True,), True)
    fields.choice("hidden_act", ("silu", "swish"), "silu")  # also of the convolution
    kinds = _kinds(fields, options["num_layers"])
    keys = fields.integer("linear_num_key_heads", 1, 65_536, 16)
    values = fields.integer("linear_num_value_heads", 1, 65_536, 32)
    if values % keys:
        raise fields.error("linear_num_value_heads", f"a multiple of linear_num_key_heads {keys}")
    delta = DeltaNet(
        tuple(kind == _LINEAR for kind in kinds),
        keys,
        values,
        fields.integer("linear_key_head_dim", 1, 256, 128),
        fields.integer("linear_value_head_dim", 1, 65_536, 128),
        fields.integer("linear_conv_kernel_dim", 1, 64, 4),
    )
    windows = (None,) * options["num_layers"]
    return {"delta": delta, "qk_norm": True, "sliding_windows": windows}


def _mixture(fields: Fields, options: Options, experts: int, kept: int) -> Mixture:
    return qwen_mixture(
        fields, options, experts=experts, kept=kept, size=512, shared=512, normalized=True
    )


def _qwen3_next(fields: Fields, options: Options) -> Options:
    mixture = _mixture(fields, options, experts=512, kept=10)
    return _delta_net(fields, options) | {"mixture": mixture}


QWEN3_NEXT = Architecture(
    model_type="qwen3_next",
    causal_lm="Qwen3NextForCausalLM",
    title="Qwen 3 Next",
    linears=_GATED,
    experts=_SHARED,
    delta=DeltaNames(
        linears={
            "query_key_value_open": "linear_attn.in_proj_qkvz",
            "output": "linear_attn.out_proj",
        },
        rates="linear_attn.in_proj_ba",
        decays="linear_attn.in_proj_ba",
    ),
    norm_offset=1.0,
    defaults={
        "num_key_value_heads": 2,
        "head_dim": 256,
        "max_position_embeddings": 32768,
        "partial_rotary_factor": 0.25,
    },
    biases=ATTENTION_BIASES,
    harmless=TRAINING,
    fixed={"output_gate_type": ("swish", "silu")},  # of the delta net
    read=_qwen3_next,
)

_SEPARATE_DELTA = DeltaNames(
    linears={
        "query": "linear_attn.in_proj_qkv",
        "key": "linear_attn.in_proj_qkv",
        "value": "linear_attn.in_proj_qkv",
        "open": "linear_attn.in_proj_z",
        "output": "linear_attn.out_proj",
    },
    rates="linear_attn.in_proj_b",
    decays="linear_attn.in_proj_a",
)

QWEN3_5 = replace(
    QWEN3_NEXT,
    model_type="qwen3_5_text",
    causal_lm="Qwen3_5ForCausalLM",
    title="Qwen 3.5",
    experts=None,
    delta=_SEPARATE_DELTA,
    rope_names=RopeNames({"mrope": "default"}, ("mrope_section", "mrope_interleaved")),
    defaults={**QWEN3_NEXT.defaults, "num_key_value_heads": 4},
    harmless=(
        "mamba_ssm_dtype",  # of runtimes' recurrent state
        "mtp_num_hidden_layers",  # these layers are copied
        "mtp_use_dedicated_embeddings",
        "mlp_only_layers",
    ),
    read=_delta_net,
)


def _qwen3_5_moe(fields: Fields, options: Options) -> Options:
    fields.nothing("mlp_only_layers")
    fields.choice("norm_topk_prob", (True,), True)
    fields.choice("decoder_sparse_step", (1,), 1)
    return _delta_net(fields, options) | {"mixture": _mixture(fields, options, experts=256, kept=8)}


QWEN3_5_MOE = replace(
    QWEN3_5,
    model_type="qwen3_5_moe_text",
    causal_lm="Qwen3_5MoeForCausalLM",
    title="Qwen 3.5 MoE",
    experts=_SHARED,
    keys={"intermediate_size": "moe_intermediate_size"},
    defaults=QWEN3_NEXT.defaults,
    harmless=(*QWEN3_5.harmless, *TRAINING, "intermediate_size"),  # no layer has a dense MLP
    read=_qwen3_5_moe,
)
