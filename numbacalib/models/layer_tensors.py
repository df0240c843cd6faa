"""The tensors of a Llama-family decoder: their names, their shapes, and those that have no place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from numbacalib.models.config import ModelConfig

__all__ = ["EMBEDDINGS", "HEAD", "canonical_name", "check_names", "is_buffer"]
__all__ += ["linear_shapes", "vector_shapes"]

EMBEDDINGS, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"

_LAYER = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,8})\.(.+)")
# What belongs to the decoder, and so must be one of its tensors; anything else is beside it.
_DECODER = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")
# The base model of transformers, saved alone, leaves out "model.".
_BARE = ("layers.", "embed_tokens.", "norm.")
# Tables that older versions saved, which are computed anew.
_BUFFERS = (
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    ".masked_bias",
    ".position_ids",
)
# What quantized checkpoints have in the place of a linear layer's ``weight``: those of
# compressed-tensors, of GPTQ and AWQ, and of MLX, which has a ``weight`` too.
_PACKED = (
    *("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"),
    *("qweight", "qzeros", "scales", "g_idx"),
    *("scales", "biases"),
)


def canonical_name(name: str) -> str:
    """The name in a causal language model of transformers: that of a base model gets ``model.``."""
    return f"model.{name}" if name.startswith(_BARE) else name


def is_buffer(name: str) -> bool:
    """Whether a tensor is a table of an older version that nothing reads any more."""
    return name.endswith(_BUFFERS)


def check_names(config: ModelConfig, names: Iterable[str], *, packed: bool = False) -> None:
    """Refuse tensors of the decoder that its configuration has no place for.

    Their presence means that the configuration does not describe the model: biases that it denies,
    more layers, experts. Takes time for the names that are there, whatever ``num_layers`` says.

    Parameters
    ----------
    config : ModelConfig
    names : iterable of str
        As `canonical_name` returns them.
    packed : bool, default False
        Whether linear layers may be quantized.

    Raises
    ------
    ValueError
        One line that names the first one.
    """
    linears = linear_shapes(config)
    known = linears.keys() | vector_shapes(config).keys()
    tables = {EMBEDDINGS, NORM, HEAD}
    if packed:
        known |= set(_parts(linears))
        tables |= set(_parts((EMBEDDINGS, HEAD)))
    for name in names:
        layer = _LAYER.fullmatch(name)
        if layer:
            has_place = int(layer[1]) < config.num_layers and layer[2] in known
        else:
            has_place = name in tables or not name.startswith(_DECODER)
        if not has_place:
            raise ValueError(
                f"{name}: expected no such tensor in a {config.model_type} of {config.num_layers} "
                "layers as its configuration describes it"
            )


def _parts(weights: Iterable[str]) -> Iterator[str]:
    """Names of what is in the place of weights that are quantized."""
    for name in weights:
        yield from (name.replace("weight", part) for part in _PACKED)


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes [M, K] of a block's linear layers, by their tensor's name in the block."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }


def vector_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of a block's norms, and of the biases that this architecture has."""
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (config.hidden_size,),
        "post_attention_layernorm.weight": (config.hidden_size,),
    }
    if config.qk_norm:
        shapes["self_attn.q_norm.weight"] = shapes["self_attn.k_norm.weight"] = (config.head_dim,)
    for name, shape in linear_shapes(config).items():
        biased = config.attention_bias
        if name.startswith("mlp."):
            biased = config.mlp_bias
        elif name.startswith("self_attn.o_proj"):
            biased = config.output_bias
        if biased:
            shapes[name.replace(".weight", ".bias")] = shape[:1]
    return shapes
