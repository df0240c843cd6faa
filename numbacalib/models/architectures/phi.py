"""Phi: fused projections since Phi 3."""

from __future__ import annotations

from numbacalib.models.description import SEPARATE, Architecture, Options
from numbacalib.models.fields import Fields
from numbacalib.models.rope_parameters import RopeNames
from numbacalib.models.windows import kinds_of_layers, no_windows, window_of, windows_of_kinds


def _phi(fields: Fields, options: Options) -> Options:
    windows = no_windows(fields, options)
    return windows | {"qk_norm": fields.flag("qk_layernorm", False), "head_bias": True}


PHI = Architecture(
    model_type="phi",
    causal_lm="PhiForCausalLM",
    title="Phi 1 and 2",
    renamed={"model.final_layernorm.": "model.norm."},
    linears={
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "output": "self_attn.dense",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
    },
    norms={
        "attention": "input_layernorm",
        "query": "self_attn.q_layernorm",
        "key": "self_attn.k_layernorm",
    },
    norm="layer",
    norm_bias=True,
    parallel=True,
    keys={"rms_norm_eps": "layer_norm_eps"},
    defaults={
        "hidden_act": "gelu_new",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
    },
    biases={"attention": True, "output": True, "mlp": True},
    read=_phi,
)


def _phi3(fields: Fields, options: Options) -> Options:
    window = window_of(fields, None)
    return windows_of_kinds(kinds_of_layers(fields, options["num_layers"], window), window)


PHI3 = Architecture(
    model_type="phi3",
    causal_lm="Phi3ForCausalLM",
    title="Phi 3 to 4",
    linears=SEPARATE
    | dict.fromkeys(("query", "key", "value"), "self_attn.qkv_proj")
    | dict.fromkeys(("gate", "up"), "mlp.gate_up_proj"),
    defaults={
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "partial_rotary_factor": 1.0,
    },
    rope_names=RopeNames({"su": "longrope", "yarn": "longrope"}),
    harmless=("embd_layer", "attention_bias", "mlp_bias"),
    fixed={"full_attn_mod": (1,), "interpolate_factor": (1,)},
    read=_phi3,
)
