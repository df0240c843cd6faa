"""Mapping between the tensor names of GGUF files and Hugging Face's.

GGUF names a tensor by its role, whatever the architecture: the roles of `numbacalib.models.description`.
One layer of all experts of a block is one tensor in GGUF, and one tensor for each expert here.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from numbacalib.models.architectures import ARCHITECTURES
from numbacalib.models.description import Architecture, DeltaNames, ExpertNames

if TYPE_CHECKING:
    from numbacalib.models.config import ModelConfig

__all__ = ["expert_names", "expert_number", "gguf_name", "hf_name", "is_merged"]
__all__ += ["parts_of", "stored_names", "variant_of"]

_OUTER = {
    "token_embd": "model.embed_tokens",
    "position_embd": "model.embed_positions",
    "output_norm": "model.norm",
    "output": "lm_head",
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
}
_LINEARS = {
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "output": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "query_key_value": "attn_qkv",
    "query_gate": "attn_q",
    "layer_gate": "inp_gate",
    "layer_output": "proj",
    "attention_gate": "attn_gate",
    "query_latent": "attn_q_a",
    "direct_query": "attn_q",
    "latent": "attn_kv_a_mqa",
    "key_value": "attn_kv_b",
}
_FUSED = {"query": "attn_qkv", "gate": "ffn_up"}
"""GGUF's names of fused layers, by the first of their roles."""
_FINAL_NORMS = dict.fromkeys(("lfm2", "lfm2_moe"), "token_embd_norm")
"""GGUF's names of the final norm, if not ``output_norm``."""
_NORMS = {
    "attention": "attn_norm",
    "mlp": "ffn_norm",
    "attention_output": "post_attention_norm",
    "mlp_output": "post_ffw_norm",
    "query": "attn_q_norm",
    "key": "attn_k_norm",
    "query_latent": "attn_q_a_norm",
    "latent": "attn_kv_a_norm",
    "layer_input_output": "post_norm",
    "experts": "pre_ffw_norm_2",
    "experts_output": "post_ffw_norm_2",
    "shared_output": "post_ffw_norm_1",
}
_OTHERS = {
    kind: {"mlp": "post_attention_norm"}
    for kind in (
        *("seed_oss", "glm4_moe", "gpt_oss", "solar_open"),
        *("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
    )
}
"""Norms with other GGUF names in some architectures."""
_APART = {"ln_attn": "attn_norm_2", "ln_mlp": "attn_norm"}
"""Norms of Falcon models with separate norms for attention and MLP, by Hugging Face's names."""
_EXPERT_ROLES = ("gate", "up", "down")
_MERGED_ROLES = {f"ffn_{role}_exps": (role,) for role in _EXPERT_ROLES} | {
    "ffn_gate_up_exps": ("gate", "up")
}
"""Roles, in order, of the rows for each expert in a tensor of all experts."""
# one spelling for each number, below a million
_NUMBER = "(?:0|[1-9][0-9]{0,5})"
_MERGED = re.compile(rf"blk\.{_NUMBER}\.(ffn_\w+_exps)\.(?:weight|bias)")


@functools.cache
def _names(model_type: str, variant: str) -> dict[str, str]:
    """Map GGUF's module names, in a block or outside, to Hugging Face's; without ``weight`` or ``bias``."""
    described = ARCHITECTURES[model_type]
    architecture = described.variants.get(variant, described)
    names, linears = dict(_OUTER), list(architecture.linears.values())
    names[_FINAL_NORMS.get(model_type, "output_norm")] = names.pop("output_norm")
    roles = _LINEARS | ({"query": "attn_q_b"} if "latent" in architecture.linears else {})
    for role, name in architecture.linears.items():
        fused = linears.count(name) > 1
        if not fused or role in _FUSED:
            names[_FUSED[role] if fused else roles[role]] = name
    norms = _NORMS | _OTHERS.get(model_type, {})
    names |= {_APART.get(name, norms[role]): name for role, name in architecture.norms.items()}
    if architecture.experts is not None:
        names |= _expert_names(architecture.experts)
    if architecture.delta is not None:
        names |= _delta_names(architecture.delta)
    names |= _mixer_names(architecture)
    if model_type in _SHARED_MLPS:
        own = {f"ffn_{role}_shexp": names[f"ffn_{role}"] for role in ("up", "down")}
        names = own | names if variant == _WITH_EXPERTS else names | own
    for whole, parts in _parts(model_type).items():
        names |= dict.fromkeys(parts, names[whole])
    return names


_SHARED_MLPS = {"granitemoehybrid", "granitemoeshared"}
"""Architectures whose shared expert has the name of the MLP here, but another one in GGUF."""
_WITH_EXPERTS = "experts"


def variant_of(config: ModelConfig) -> str:
    """Return the variant of names that a model has: the `variant` of other functions here."""
    if config.model_type in _SHARED_MLPS and config.mixture is not None:
        return _WITH_EXPERTS
    return config.variant


@functools.cache
def _parts(model_type: str) -> dict[str, tuple[str, str]]:
    """Return the matrices that files split in two: GGUF's names of the whole, and of the two parts."""
    described, found = ARCHITECTURES[model_type], {}
    if "latent" in described.linears:
        found["attn_kv_b"] = "attn_k_b", "attn_v_b"
    if described.delta is not None and "open" not in described.delta.linears:
        found["ssm_in"] = "attn_qkv", "attn_gate"
    if model_type in _SHARED_MLPS:
        found |= {f"ffn_up{end}": (f"ffn_gate{end}", f"ffn_up{end}") for end in ("", "_shexp")}
    return found


def _expert_names(experts: ExpertNames) -> dict[str, str]:
    """Map GGUF's names of the router, the shared expert and latent projections to Hugging Face's."""
    names = {"ffn_gate_inp": experts.router}
    ends = {role: getattr(experts, role) for role in _EXPERT_ROLES}
    if experts.shared:
        names |= {
            f"ffn_{role}_shexp": f"{experts.shared}.{end}" for role, end in ends.items() if end
        }
    if experts.shared_gate:
        names["ffn_gate_inp_shexp"] = experts.shared_gate
    if experts.latent:
        names |= {"ffn_latent_down": experts.latent, "ffn_latent_up": experts.latent_output}
    return names


def _mixer_names(architecture: Architecture) -> dict[str, str]:
    """Map GGUF's names of the modules of a short convolution, or of Mamba 2, to Hugging Face's."""
    names: dict[str, str] = {}
    if (convolution := architecture.convolution) is not None:
        names |= {
            "shortconv.in_proj": convolution.linears["thirds"],
            "shortconv.out_proj": convolution.linears["output"],
            "shortconv.conv": convolution.taps,
        }
    if (space := architecture.state_space) is not None:
        names |= {
            "ssm_in": space.linears["mixed"],
            "ssm_out": space.linears["output"],
            "ssm_conv1d": space.convolution,
            "ssm_norm": space.norm,
        }
    return names


def _delta_names(delta: DeltaNames) -> dict[str, str]:
    """Map GGUF's names of a gated delta net's modules to Hugging Face's."""
    names = {
        "ssm_out": delta.linears["output"],
        "ssm_conv1d": delta.convolution,
        "ssm_norm": delta.norm,
    }
    if delta.rates == delta.decays:
        names["ssm_ba"] = delta.rates
    else:
        names |= {"ssm_beta": delta.rates, "ssm_alpha": delta.decays}
    if "open" not in delta.linears:
        return names | {"ssm_in": delta.linears["query_key_value_open"]}
    return names | {"attn_qkv": delta.linears["query"], "attn_gate": delta.linears["open"]}


@functools.cache
def _whole_names(model_type: str) -> dict[str, str]:
    """Map GGUF's names in a block to tensors that are not ``weight`` or ``bias`` of a module here."""
    architecture = ARCHITECTURES[model_type]
    experts, delta, space = architecture.experts, architecture.delta, architecture.state_space
    names = {
        "attn_sinks.weight": architecture.sinks,
        "layer_output_scale.weight": architecture.block_scale,
    }
    if experts is not None:
        names["exp_probs_b.bias"] = experts.correction
        names["ffn_gate_inp.scale"] = experts.router_norm
        names["ffn_down_exps.scale"] = experts.factors
    if delta is not None:
        names |= {"ssm_a": delta.slopes, "ssm_dt.bias": delta.biases}
    if space is not None:
        names |= {"ssm_a": space.slopes, "ssm_d": space.shares, "ssm_dt.bias": space.biases}
    return {stored: theirs for stored, theirs in names.items() if theirs}


@functools.cache
def _gguf_names(model_type: str, variant: str) -> dict[str, str]:
    names = _names(model_type, variant).items()
    return {theirs: ours for ours, theirs in reversed(names)}  # of several, the whole one


@functools.cache
def _experts(model_type: str) -> dict[str, tuple[tuple[str, str], ...]]:
    """Map GGUF's name of a tensor of all experts to prefixes and suffixes of one expert's layer names."""
    names = ARCHITECTURES[model_type].experts
    if names is None:
        return {}
    return {
        merged: tuple((f"{names.each}.", f".{getattr(names, role)}") for role in roles)
        for merged, roles in _MERGED_ROLES.items()
        if all(getattr(names, role) for role in roles)
    }


def hf_name(name: str, model_type: str = "llama", variant: str = "") -> str:
    """Map ``blk.0.attn_q.weight`` to ``model.layers.0.self_attn.q_proj.weight``.

    Raises
    ------
    ValueError
        If the architecture has no such tensor, or the tensor holds all experts: see `expert_names`.
    """
    in_block = re.fullmatch(rf"blk\.({_NUMBER})\.(.+)", name)
    layer, own = (f"model.layers.{in_block[1]}.", in_block[2]) if in_block else ("", name)
    if layer and (whole := _whole_names(model_type).get(own)):
        return layer + whole
    match, names = re.fullmatch(r"([\w.]+)\.(weight|bias)", own), _names(model_type, variant)
    if match is None or match[1] not in names:
        raise _unknown(name)
    return f"{layer}{names[match[1]]}.{match[2]}"


def parts_of(name: str, model_type: str) -> tuple[str, ...]:
    """Return the names of the two tensors that make up a matrix, given either; () for other tensors."""
    stem = name.rpartition(".")[0].rpartition(".")[2]
    parts = next((both for both in _parts(model_type).values() if stem in both), ())
    return tuple(name.replace(stem, part) for part in parts)


def is_merged(name: str, model_type: str) -> bool:
    """Return whether a tensor, by GGUF's name, holds all experts of a block."""
    match = _MERGED.fullmatch(name)
    return match is not None and match[1] in _experts(model_type)


def expert_names(name: str, model_type: str, count: int) -> list[str]:
    """Map a merged tensor, ``blk.0.ffn_up_exps.weight``, to each expert's tensor names, in order."""
    _, block, merged, suffix = name.split(".")
    return [
        f"model.layers.{block}.{begin}{number}{end}.{suffix}"
        for number in range(count)
        for begin, end in _experts(model_type)[merged]
    ]


def gguf_name(name: str, model_type: str = "llama", variant: str = "") -> str:
    """Invert `hf_name`; an expert's tensor gives the name of the tensor that holds all experts.

    A matrix that files split in two gives its name as a whole: see `stored_names`.
    """
    block, own = _in_block(name)
    for stored, theirs in _whole_names(model_type).items():
        if block and own == theirs:
            return block + stored
    if (merged := _expert(own, model_type)) is not None:
        return f"{block}{merged[0]}.{own.rpartition('.')[2]}"
    match, names = re.fullmatch(r"([\w.]+)\.(weight|bias)", own), _gguf_names(model_type, variant)
    if match is None or match[1] not in names:
        raise _unknown(name)
    return f"{block}{names[match[1]]}.{match[2]}"


def stored_names(name: str, model_type: str = "llama", variant: str = "") -> tuple[str, ...]:
    """Return the names of a file's tensors that hold one of ours: its `gguf_name`, or its two parts."""
    whole = gguf_name(name, model_type, variant)
    stem = whole.rpartition(".")[0].rpartition(".")[2]
    return tuple(whole.replace(stem, part) for part in _parts(model_type).get(stem, (stem,)))


def expert_number(name: str, model_type: str) -> int | None:
    """Return the number of a tensor's expert, by Hugging Face's name; None for other tensors."""
    found = _expert(_in_block(name)[1], model_type)
    return None if found is None else found[1]


def _in_block(name: str) -> tuple[str, str]:
    """Return GGUF's prefix of a tensor's block, and the rest of Hugging Face's name."""
    layer = re.match(rf"model\.layers\.({_NUMBER})\.", name)
    return (f"blk.{layer[1]}.", name[layer.end() :]) if layer else ("", name)


def _expert(name: str, model_type: str) -> tuple[str, int] | None:
    """Return GGUF's tensor of all experts and an expert's number, by its name in a block; else None."""
    for merged, ((begin, end), *_) in _experts(model_type).items():
        pattern = rf"{re.escape(begin)}({_NUMBER}){re.escape(end)}\.(?:weight|bias)"
        if match := re.fullmatch(pattern, name):
            return merged, int(match[1])
    return None


def _unknown(name: str) -> ValueError:
    return ValueError(f"expected a tensor of a supported architecture, got {name}")
