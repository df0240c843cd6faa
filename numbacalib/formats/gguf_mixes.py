"""Types of a GGUF file's tensors, for the named mixes.

They are llama.cpp's choices with an importance matrix, for the architectures that can be written:
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp (``llama_tensor_get_type_impl``,
``tensor_type_fallback``).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from numbacalib.formats.gguf_blocks import BLOCK_TYPES
from numbacalib.formats.gguf_mxfp4 import MXFP4

EMBEDDINGS = "token_embd.weight", "per_layer_token_embd.weight"
HEAD = "output.weight"

_BASE = {
    "Q4_0": ("Q4_0", 2),
    "Q4_1": ("Q4_1", 3),
    "Q8_0": ("Q8_0", 7),
    "Q5_0": ("Q5_0", 8),
    "Q5_1": ("Q5_1", 9),
    "Q2_K": ("Q2_K", 10),
    "Q3_K_S": ("Q3_K", 11),
    "Q3_K_M": ("Q3_K", 12),
    "Q3_K_L": ("Q3_K", 13),
    "Q4_K_S": ("Q4_K", 14),
    "Q4_K_M": ("Q4_K", 15),
    "Q5_K_S": ("Q5_K", 16),
    "Q5_K_M": ("Q5_K", 17),
    "Q6_K": ("Q6_K", 18),
    MXFP4: (MXFP4, 38),
}
"""Type of most tensors, and the number of ``general.file_type`` (``enum llama_ftype``)."""
MIXES = tuple(_BASE)
_FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""Types in blocks of 32 for rows that are not whole blocks of 256."""


class Layers(NamedTuple):
    """Properties of a model that the mixes depend on."""

    depth: int
    heads_per_kv: int
    tied: bool
    experts: int = 0
    """Of a block."""
    large: bool = False
    """True for models that llama.cpp treats as 70B."""
    falcon: bool = False
    """True for a Falcon, whose output layers get other types."""
    valued: tuple[int, ...] = ()
    """Blocks with their own values; empty for all."""
    wide: tuple[int, ...] = ()
    """Blocks with an MLP, in a model without experts; empty for all."""


def file_type(mix: str) -> int:
    """Return the number of ``general.file_type``."""
    return _BASE[mix][1]


def tensor_type_of(mix: str, name: str, channels: int, layers: Layers) -> str:
    """Return the type of a matrix.

    Parameters
    ----------
    mix : str
        One of `MIXES`.
    name : str
        GGUF's name.
    channels : int
        K.
    layers : Layers
    """
    base = _BASE[mix][0]
    if base == MXFP4:  # llama.cpp gives all but layers of blocks 8 bits
        return MXFP4 if name.startswith("blk.") else "Q8_0"
    if name == HEAD or (name in EMBEDDINGS and layers.tied):
        whole = channels % BLOCK_TYPES[base].grid.values == 0
        wanted = "Q6_K" if whole and base != "Q8_0" and not layers.falcon else "Q8_0"
    elif match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name):
        wanted = _layer_type(mix, base, match[2], int(match[1]), layers)
    else:
        wanted = base
    if channels % BLOCK_TYPES[wanted].grid.values:
        wanted = _FALLBACKS.get(wanted, wanted)
    return wanted


def _layer_type(mix: str, base: str, kind: str, layer: int, layers: Layers) -> str:
    """Return the type of a matrix of a block, for rows of whole blocks."""
    eighth, more = layers.depth // 8, _has_more(layer, layers.depth)
    if layers.experts == 8 and kind in ("attn_qkv", "attn_v", "attn_k"):
        return "Q8_0"
    if kind in ("attn_qkv", "attn_v"):
        if layers.valued:  # the block's index among these
            layer = layers.valued.index(layer)
            more = _has_more(layer, len(layers.valued))
        wanted = {
            "Q2_K": "Q4_K" if layers.heads_per_kv >= 4 else "Q3_K",
            "Q3_K_M": "Q5_K" if layer < 2 else "Q4_K",
            "Q3_K_L": "Q5_K",
            "Q4_K_S": "Q5_K" if layer < 4 else base,
            "Q4_K_M": "Q6_K" if more else base,
            "Q5_K_M": "Q6_K" if more else base,
        }.get(mix, base)
        # in large models eight heads share these weights
        return "Q5_K" if layers.large and wanted in ("Q3_K", "Q4_K") else wanted
    if layers.falcon and kind == "attn_output":
        return "Q4_K" if mix == "Q3_K_L" else base
    if layers.falcon and kind == "ffn_down":
        first = layer < layers.depth // 16
        return {
            "Q4_0": "Q4_1" if layer < eighth else base,
            "Q5_0": "Q5_1" if layer < eighth else base,
            "Q2_K": "Q3_K",
            "Q3_K_M": "Q5_K" if first else "Q4_K" if more else base,
            "Q3_K_L": "Q4_K",
            "Q4_K_M": "Q6_K" if first else "Q5_K" if more else base,
            "Q5_K_M": "Q6_K" if more else base,
        }.get(mix, base)
    if kind.startswith("ffn_down"):  # experts included
        if layers.wide:
            layer = layers.wide.index(layer)
            more = _has_more(layer, layers.depth)
        return {
            "Q4_0": "Q4_1" if layer < eighth else base,
            "Q5_0": "Q5_1" if layer < eighth else base,
            "Q2_K": "Q3_K",
            "Q3_K_M": "Q5_K" if layer < layers.depth // 16 else "Q4_K",
            "Q3_K_L": "Q5_K",
            "Q4_K_S": "Q5_K" if layer < eighth else base,
            "Q4_K_M": "Q6_K" if more else base,
            "Q5_K_M": "Q6_K" if more else base,
        }.get(mix, base)
    if kind == "attn_output" and layers.experts == 8:
        return "Q5_K" if mix in ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M") else base
    if kind == "attn_output":
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(mix, base)
    return base


def _has_more(layer: int, depth: int) -> bool:
    """Return whether a layer is one to which some mixes give more bits."""
    eighth = depth // 8
    return layer < eighth or layer >= 7 * depth // 8 or (layer - eighth) % 3 == 2
