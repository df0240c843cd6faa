"""Names of a Llama-family model's tensors, in GGUF files and in Hugging Face's."""

from __future__ import annotations

import re

_HUGGING_FACE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# a block's number has one spelling; no model has a million of them
_NUMBER = "0|[1-9][0-9]{0,5}"
_GGUF = {theirs: ours for ours, theirs in _HUGGING_FACE.items()}


def hf_name(name: str) -> str:
    """``blk.0.attn_q.weight`` to ``model.layers.0.self_attn.q_proj.weight``.

    Raises
    ------
    ValueError
        If no architecture that is supported has the tensor.
    """
    match = re.fullmatch(rf"(?:blk\.({_NUMBER})\.)?(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in _HUGGING_FACE:
        raise ValueError(f"a tensor of no architecture that is supported: {name}")
    layer = "" if match[1] is None else f"model.layers.{match[1]}."
    return f"{layer}{_HUGGING_FACE[match[2]]}.{match[3]}"


def gguf_name(name: str) -> str:
    """Inverse of `hf_name`."""
    match = re.fullmatch(rf"(?:model\.layers\.({_NUMBER})\.)?([\w.]+)\.(weight|bias)", name)
    if match is None or match[2] not in _GGUF:
        raise ValueError(f"a tensor of no architecture that is supported: {name}")
    block = "" if match[1] is None else f"blk.{match[1]}."
    return f"{block}{_GGUF[match[2]]}.{match[3]}"
