"""Names of a model's tensors, in GGUF files and in Hugging Face's.

GGUF names what a tensor does, whatever the architecture: the roles of `numbacalib.models.description`.
"""

from __future__ import annotations

import functools
import re

from numbacalib.models.architectures import ARCHITECTURES

_OUTER = {
    "token_embd": "model.embed_tokens",
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
}
_OTHERS = {"seed_oss": {"mlp": "post_attention_norm"}}
"""Norms that an architecture calls otherwise."""
# a block's number has one spelling; no model has a million of them
_NUMBER = "0|[1-9][0-9]{0,5}"


@functools.cache
def _names(model_type: str) -> dict[str, str]:
    """Hugging Face's names in a block, or outside of one, by GGUF's."""
    architecture = ARCHITECTURES[model_type]
    names, linears = dict(_OUTER), list(architecture.linears.values())
    for role, name in architecture.linears.items():
        fused = linears.count(name) > 1
        if not fused or role in _FUSED:
            names[_FUSED[role] if fused else _LINEARS[role]] = name
    norms = _NORMS | _OTHERS.get(model_type, {})
    return names | {norms[role]: name for role, name in architecture.norms.items()}


@functools.cache
def _gguf_names(model_type: str) -> dict[str, str]:
    return {theirs: ours for ours, theirs in _names(model_type).items()}


def hf_name(name: str, model_type: str = "llama") -> str:
    """``blk.0.attn_q.weight`` to ``model.layers.0.self_attn.q_proj.weight``.

    Raises
    ------
    ValueError
        If the architecture has no such tensor.
    """
    match = re.fullmatch(rf"(?:blk\.({_NUMBER})\.)?(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in _names(model_type):
        raise ValueError(f"a tensor of no architecture that is supported: {name}")
    layer = "" if match[1] is None else f"model.layers.{match[1]}."
    return f"{layer}{_names(model_type)[match[2]]}.{match[3]}"


def gguf_name(name: str, model_type: str = "llama") -> str:
    """Inverse of `hf_name`."""
    match = re.fullmatch(rf"(?:model\.layers\.({_NUMBER})\.)?([\w.]+)\.(weight|bias)", name)
    if match is None or match[2] not in _gguf_names(model_type):
        raise ValueError(f"a tensor of no architecture that is supported: {name}")
    block = "" if match[1] is None else f"blk.{match[1]}."
    return f"{block}{_gguf_names(model_type)[match[2]]}.{match[3]}"
