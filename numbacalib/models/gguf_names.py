"""Names of a model's tensors, in GGUF files and in Hugging Face's.

GGUF names what a tensor does, whatever the architecture: the roles of `numbacalib.models.description`.
A layer of all experts of a block is one tensor there, and a tensor each here.
"""

from __future__ import annotations

import functools
import re

from numbacalib.models.architectures import ARCHITECTURES

_OUTER = {
    "token_embd": "model.embed_tokens",
    "position_embd": "model.embed_positions",
    "output_norm": "model.norm",
    "output": "lm_head",
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
    "attention_gate": "attn_gate",
    "query_latent": "attn_q_a",
    "direct_query": "attn_q",
    "latent": "attn_kv_a_mqa",
    "key_value": "attn_kv_b",
}
_FUSED = {"query": "attn_qkv", "gate": "ffn_up"}
"""Of a layer that has the roles after this one, too."""
_NORMS = {
    "attention": "attn_norm",
    "mlp": "ffn_norm",
    "attention_output": "post_attention_norm",
    "mlp_output": "post_ffw_norm",
    "query": "attn_q_norm",
    "key": "attn_k_norm",
    "query_latent": "attn_q_a_norm",
    "latent": "attn_kv_a_norm",
}
_OTHERS = {
    kind: {"mlp": "post_attention_norm"}
    for kind in ("seed_oss", "glm4_moe", "gpt_oss", "solar_open")
}
"""Norms that an architecture calls otherwise."""
_APART = {"ln_attn": "attn_norm_2", "ln_mlp": "attn_norm"}
"""Norms of Falcons that have one each for attention and MLP, by Hugging Face's names."""
_EXPERT_ROLES = ("gate", "up", "down")
_CORRECTION, _SINKS = "exp_probs_b.bias", "attn_sinks.weight"
# a block's number has one spelling; no model has a million of them
_NUMBER = "(?:0|[1-9][0-9]{0,5})"
_MERGED = re.compile(rf"blk\.{_NUMBER}\.(ffn_\w+_exps)\.(?:weight|bias)")


@functools.cache
def _names(model_type: str, variant: str) -> dict[str, str]:
    """Hugging Face's names in a block, or outside of one, by GGUF's; without ``weight`` or ``bias``."""
    described = ARCHITECTURES[model_type]
    architecture = described.variants.get(variant, described)
    names, linears = dict(_OUTER), list(architecture.linears.values())
    roles = _LINEARS | ({"query": "attn_q_b"} if "latent" in architecture.linears else {})
    for role, name in architecture.linears.items():
        fused = linears.count(name) > 1
        if not fused or role in _FUSED:
            names[_FUSED[role] if fused else roles[role]] = name
    norms = _NORMS | _OTHERS.get(model_type, {})
    names |= {_APART.get(name, norms[role]): name for role, name in architecture.norms.items()}
    if (experts := architecture.experts) is not None:
        names["ffn_gate_inp"] = experts.router
        if experts.shared:
            names |= {
                f"ffn_{role}_shexp": f"{experts.shared}.{getattr(experts, role)}"
                for role in _EXPERT_ROLES
            }
        if experts.shared_gate:
            names["ffn_gate_inp_shexp"] = experts.shared_gate
    return names


@functools.cache
def _whole_names(model_type: str) -> dict[str, str]:
    """Names in a block, by GGUF's, of tensors that are neither a weight nor a bias of a module here."""
    architecture, names = ARCHITECTURES[model_type], {}
    if architecture.experts is not None and architecture.experts.correction:
        names[_CORRECTION] = architecture.experts.correction
    if architecture.sinks:
        names[_SINKS] = architecture.sinks
    return names


@functools.cache
def _gguf_names(model_type: str, variant: str) -> dict[str, str]:
    return {theirs: ours for ours, theirs in _names(model_type, variant).items()}


@functools.cache
def _experts(model_type: str) -> dict[str, tuple[str, str]]:
    """Beginnings and ends of the names of one expert's layers, by GGUF's name of the tensor of all."""
    names = ARCHITECTURES[model_type].experts
    if names is None:
        return {}
    return {
        f"ffn_{role}_exps": (f"{names.each}.", f".{getattr(names, role)}") for role in _EXPERT_ROLES
    }


def hf_name(name: str, model_type: str = "llama", variant: str = "") -> str:
    """``blk.0.attn_q.weight`` to ``model.layers.0.self_attn.q_proj.weight``.

    Raises
    ------
    ValueError
        If the architecture has no such tensor, or it holds all experts: see `expert_names`.
    """
    block, stem, suffix = _parts(name, rf"(?:blk\.({_NUMBER})\.)?(\w+)\.(weight|bias)")
    layer = f"model.layers.{block}." if block else ""
    if layer and (whole := _whole_names(model_type).get(f"{stem}.{suffix}")):
        return layer + whole
    names = _names(model_type, variant)
    if stem not in names:
        raise _unknown(name)
    return f"{layer}{names[stem]}.{suffix}"


def is_merged(name: str, model_type: str) -> bool:
    """Return whether a tensor, by GGUF's name, is the one of all experts of a block."""
    match = _MERGED.fullmatch(name)
    return match is not None and match[1] in _experts(model_type)


def expert_names(name: str, model_type: str, count: int) -> list[str]:
    """``blk.0.ffn_up_exps.weight``, a merged one, to the names of each expert's tensor, in their order."""
    _, block, merged, suffix = name.split(".")
    begin, end = _experts(model_type)[merged]
    return [f"model.layers.{block}.{begin}{number}{end}.{suffix}" for number in range(count)]


def gguf_name(name: str, model_type: str = "llama", variant: str = "") -> str:
    """Inverse of `hf_name`; of an expert's tensor, the name of the one that holds all."""
    block, own = _in_block(name)
    for stored, theirs in _whole_names(model_type).items():
        if block and own == theirs:
            return block + stored
    if (merged := _expert(own, model_type)) is not None:
        return f"{block}{merged[0]}.{own.rpartition('.')[2]}"
    _, stem, suffix = _parts(own, r"()([\w.]+)\.(weight|bias)")
    names = _gguf_names(model_type, variant)
    if stem not in names:
        raise _unknown(name)
    return f"{block}{names[stem]}.{suffix}"


def expert_number(name: str, model_type: str) -> int | None:
    """Number of the expert that a tensor is of, by Hugging Face's name; None for others."""
    found = _expert(_in_block(name)[1], model_type)
    return None if found is None else found[1]


def _in_block(name: str) -> tuple[str, str]:
    """Beginning of GGUF's name, and the rest of Hugging Face's."""
    layer = re.match(rf"model\.layers\.({_NUMBER})\.", name)
    return (f"blk.{layer[1]}.", name[layer.end() :]) if layer else ("", name)


def _expert(name: str, model_type: str) -> tuple[str, int] | None:
    """GGUF's tensor of all experts, and which of them one is, by its name in a block."""
    for merged, (begin, end) in _experts(model_type).items():
        pattern = rf"{re.escape(begin)}({_NUMBER}){re.escape(end)}\.(?:weight|bias)"
        if match := re.fullmatch(pattern, name):
            return merged, int(match[1])
    return None


def _parts(name: str, pattern: str) -> tuple[str, str, str]:
    match = re.fullmatch(pattern, name)
    if match is None:
        raise _unknown(name)
    return match[1] or "", match[2], match[3]


def _unknown(name: str) -> ValueError:
    return ValueError(f"a tensor of no architecture that is supported: {name}")
