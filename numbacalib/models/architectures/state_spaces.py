"""Decoders with mostly Mamba 2 layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from numbacalib.models.architectures.mixtures import TRAINING, deepseek_mixture, everywhere
from numbacalib.models.architectures.relatives import granite_factors, without_gate
from numbacalib.models.architectures.shared import GRANITEMOE_SHARED
from numbacalib.models.description import (
    ATTENTION_BIASES,
    Architecture,
    ExpertNames,
    Options,
    StateSpaceNames,
)
from numbacalib.models.fields import Fields
from numbacalib.models.state_space import StateSpace
from numbacalib.models.windows import FULL

_MAMBA, _NAMES = "linear_attention", {"mamba": "linear_attention", "attention": FULL}


def _state_space(fields: Fields, options: Options) -> Options:
    """Read the Mamba 2 layers and their sizes."""
    count, hidden = options["num_layers"], options["hidden_size"]
    kinds = [_NAMES.get(kind, kind) for kind in fields.texts("layer_types", [_MAMBA] * count)]
    if len(kinds) != count or set(kinds) - {FULL, _MAMBA}:
        raise fields.error("layer_types", f"{FULL} or {_MAMBA} for each of {count} layers")
    inner = fields.integer("mamba_expand", 1, 64, 2) * hidden
    heads = fields.integer("mamba_n_heads", 1, 65_536, 128)
    groups = fields.integer("mamba_n_groups", 1, heads, 1)
    if inner % heads or heads % groups:
        raise fields.error(
            "mamba_n_heads", f"a divisor of {inner}, and a multiple of {groups} groups"
        )
    fields.choice("mamba_d_head", ("auto", inner // heads), "auto")
    fields.choice("mamba_proj_bias", (False,), False)
    _steps(fields)
    space = StateSpace(
        tuple(kind == _MAMBA for kind in kinds),
        heads,
        groups,
        inner // heads,
        fields.integer("mamba_d_state", 1, 256, 256),
        fields.integer("mamba_d_conv", 1, 64, 4),
        fields.flag("mamba_conv_bias", True),
    )
    return {"state_space": space if any(space.layers) else None}


def _granitemoehybrid(fields: Fields, options: Options) -> Options:
    """Read Mamba 2 layers, experts if there are any, and a shared MLP."""
    count = options["num_layers"]
    shared = fields.integer("shared_intermediate_size", 1, 1 << 24, 1024)
    found = granite_factors(fields) | _state_space(fields, options)
    turns = fields.choice("position_embedding_type", ("rope", "nope"), None) == "rope"
    found |= {"rotary_layers": (turns,) * count, "sliding_windows": (None,) * count}
    if fields.integer("num_local_experts", 0, 1 << 16, 8):
        mixture = everywhere(fields, options, experts=8, kept=2)["mixture"]
        return found | {"mixture": replace(mixture, shared_size=shared)}
    fields.integer("num_experts_per_tok", 0, 1 << 16, 2)
    return found | {"intermediate_size": shared}


GRANITE_HYBRID = replace(
    GRANITEMOE_SHARED,
    model_type="granitemoehybrid",
    causal_lm="GraniteMoeHybridForCausalLM",
    title="Granite 4",
    state_space=StateSpaceNames(linears={"mixed": "mamba.in_proj", "output": "mamba.out_proj"}),
    synonyms={"layers_block_type": "layer_types"},
    harmless=(*TRAINING, "mamba_chunk_size", "init_method", "normalization_function"),
    read=_granitemoehybrid,
)


_LARGEST_STEP = float(np.finfo(np.float32).max)


def _steps(fields: Fields) -> None:
    """Refuse limits of time steps."""
    limits = fields.numbers("time_step_limit", 2, 0, math.inf, [0.0, math.inf])
    if limits[0] or limits[1] <= _LARGEST_STEP:  # files have 1e308, since JSON has no infinity
        raise fields.error("time_step_limit", "0 and infinity")


_EXPERTS, _MLP = "moe", "mlp"
_PATTERN = {"M": _MAMBA, "E": _EXPERTS, "*": FULL, "-": _MLP}
_HALVES = {_MAMBA: "attention", FULL: "attention", _EXPERTS: "mlp", _MLP: "mlp"}
_MIXTURE = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 7688,
    "first_k_dense_replace": 0,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
    "n_shared_experts": 1,
}


def _with_kinds(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a configuration with kinds of layers, and so their number, from one letter for each."""
    found = dict(config)
    pattern = found.pop("hybrid_override_pattern", None)
    kinds = found.pop("layers_block_type", found.get("layer_types"))
    if kinds is None and isinstance(pattern, str):
        kinds = [_PATTERN.get(letter, letter) for letter in pattern]
    if isinstance(kinds, list):
        found |= {"layer_types": kinds, "num_hidden_layers": len(kinds)}
    return found


def _nemotron_h(fields: Fields, options: Options) -> Options:
    """Read blocks of one sublayer each: Mamba 2, attention without rotary embedding, MLP or experts."""
    count = options["num_layers"]
    kinds = [_NAMES.get(kind, kind) for kind in fields.texts("layer_types")]
    if len(kinds) != count or set(kinds) - set(_HALVES):
        raise fields.error("layer_types", f"{', '.join(_HALVES)} for each of {count} layers")
    fields.nothing("use_bias", "mamba_proj_bias", "sliding_window")
    fields.choice("mamba_hidden_act", ("silu",), "silu")
    _steps(fields)
    heads = fields.integer("mamba_num_heads", 1, 65_536, 128)
    groups = fields.integer("n_groups", 1, heads, 8)
    if heads % groups:
        raise fields.error("n_groups", f"a divisor of mamba_num_heads {heads}")
    space = StateSpace(
        tuple(kind == _MAMBA for kind in kinds),
        heads,
        groups,
        fields.integer("mamba_head_dim", 1, 65_536, 64),
        fields.integer("ssm_state_size", 1, 256, 128),
        fields.integer("conv_kernel", 1, 64, 4),
        fields.flag("use_conv_bias", True),
    )
    fields.choice("n_shared_experts", (1,), 1)
    mixture = replace(
        deepseek_mixture(fields, options, _MIXTURE),
        layers=tuple(kind == _EXPERTS for kind in kinds),
        shared_size=fields.integer("moe_shared_expert_intermediate_size", 1, 1 << 24, 7688),
        latent_size=fields.integer("moe_latent_size", 1, 1 << 20, None) or 0,
    )
    if mixture.latent_size and options["mlp_bias"]:
        raise fields.error("mlp_bias", "false beside a moe_latent_size")
    return {
        "state_space": space if any(space.layers) else None,
        "mixture": mixture if any(mixture.layers) else None,
        "halves": tuple(_HALVES[kind] for kind in kinds),
        "rotary_layers": (False,) * count,
        "sliding_windows": (None,) * count,
    }


NEMOTRON_H = Architecture(
    model_type="nemotron_h",
    causal_lm="NemotronHForCausalLM",
    title="Nemotron H and 3",
    renamed={
        "backbone.embeddings.": "model.embed_tokens.",
        "backbone.layers.": "model.layers.",
        "backbone.norm_f.": "model.norm.",
    },
    linears=without_gate("mixer.up_proj", "mixer.down_proj")
    | {role: f"mixer.{role[0]}_proj" for role in ("query", "key", "value", "output")},
    norms={"attention": "norm", "mlp": "norm"},
    experts=ExpertNames(
        router="mixer.gate",
        correction="mixer.gate.e_score_correction_bias",
        latent="mixer.fc1_latent_proj",
        latent_output="mixer.fc2_latent_proj",
        each="mixer.experts",
        gate="",
        shared="mixer.shared_experts",
    ),
    state_space=StateSpaceNames(
        linears={"mixed": "mixer.in_proj", "output": "mixer.out_proj"},
        convolution="mixer.conv1d",
        norm="mixer.norm",
        slopes="mixer.A_log",
        biases="mixer.dt_bias",
        shares="mixer.D",
    ),
    keys={"hidden_act": "mlp_hidden_act", "rms_norm_eps": "layer_norm_epsilon"},
    synonyms={"attention_head_dim": "head_dim"},
    prepared=_with_kinds,
    defaults={
        "hidden_act": "relu2",
        "head_dim": 128,
        "max_position_embeddings": 4096,
        "num_key_value_heads": 8,
        "partial_rotary_factor": 1.0,
        "rms_norm_eps": 1e-5,
    },
    biases=ATTENTION_BIASES | {"mlp": "mlp_bias"},
    harmless=(
        *TRAINING,
        *("chunk_size", "expand", "mamba_ssm_cache_dtype", "moe_shared_expert_overlap"),
        *("mtp_hybrid_override_pattern", "mtp_layers_block_type", "num_logits_to_keep"),
        *("rescale_prenorm_residual", "residual_in_fp32", "rope_theta", "use_mamba_kernels"),
        *("time_step_floor", "time_step_max", "time_step_min", "norm_eps"),
        *(
            "time_step_rank",
            "rms_norm_eps",
        ),  # dt_bias has one number a head; layer_norm_epsilon is used
    ),
    read=_nemotron_h,
)
