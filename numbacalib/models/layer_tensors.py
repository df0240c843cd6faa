"""The tensors of a decoder: their names, their shapes, and those that have no place.

Outside of the blocks all decoders have the names that llama has in transformers; `Architecture.renamed`
says what files have instead. In a block they are the architecture's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from numbacalib.models.config import ModelConfig
from numbacalib.models.wrappers import beside_decoder, decoder_name

__all__ = ["EMBEDDINGS", "HEAD", "HEAD_BIAS", "NORM", "NORM_BIAS"]
__all__ += [
    "Part",
    "Stage",
    "beside",
    "canonical_name",
    "check_names",
    "denied",
    "is_buffer",
    "is_norm",
]
__all__ += ["linear_shapes", "outer_vector_shapes", "parts", "stages", "vector_shapes"]

Stage = tuple[str, ...]
"""Short names of the layers of a block that share an input."""

EMBEDDINGS, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
NORM_BIAS, HEAD_BIAS = "model.norm.bias", "lm_head.bias"

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
# What compressed-tensors has in the place of a linear layer's ``weight``.
_PACKED = ("packed", "scale", "shape", "zero_point", "g_idx")


def canonical_name(name: str, config: ModelConfig) -> str:
    """The name that a tensor of a file has here; those of a base model have no ``model.``."""
    name = decoder_name(name)
    for theirs, ours in config.architecture.renamed.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return f"model.{name}" if name.startswith(_BARE) else name


def is_buffer(name: str) -> bool:
    """Whether a tensor is a table of an older version that nothing reads any more."""
    return name.endswith(_BUFFERS)


def denied(config: ModelConfig, names: Iterable[str], *, packed: bool = False) -> list[str]:
    """Tensors of the decoder that its configuration has no place for.

    They mean that the configuration does not describe the model: biases that it denies, more layers,
    experts. Takes time for the names that are there, whatever ``num_layers`` says.

    Parameters
    ----------
    config : ModelConfig
    names : iterable of str
        As `canonical_name` returns them.
    packed : bool, default False
        Whether linear layers may be stored by compressed-tensors.
    """
    known: dict[int, set[str]] = {}
    outside = [EMBEDDINGS, HEAD, *outer_vector_shapes(config)]
    found = []
    for name in names:
        layer = _LAYER.fullmatch(name)
        if layer:
            index = int(layer[1])
            if index < config.num_layers and index not in known:
                known[index] = _known_in_block(config, index, packed)
            further = 0 <= index - config.num_layers < config.extra_layers
            has_place = further or layer[2] in known.get(index, ())
        else:
            has_place = name in outside or not name.startswith(_DECODER)
        if not has_place:
            found.append(name)
    return found


def check_names(config: ModelConfig, names: Iterable[str]) -> None:
    """Refuse tensors of the decoder that its configuration has no place for.

    Raises
    ------
    ValueError
        One line that names the first one.
    """
    if found := denied(config, names):
        raise ValueError(
            f"{found[0]}: expected no such tensor in a {config.model_type} of {config.num_layers} "
            "layers as its configuration describes it"
        )


def beside(config: ModelConfig, names: Iterable[str]) -> list[str]:
    """Expressions for ``ignore``: of all that is in the file but not in the decoder that is quantized.

    Towers and projectors of other media, and the layers after the last that predict further tokens.
    """
    last = config.num_layers
    further = [rf"re:.*layers\.{last + index}\..*" for index in range(config.extra_layers)]
    return [*further, *beside_decoder(names, _DECODER)]


def _known_in_block(config: ModelConfig, index: int, packed: bool) -> set[str]:
    linears = linear_shapes(config, index)
    known = {*linears, *vector_shapes(config, index)}
    if packed:
        known |= {f"{name}_{part}" for name in linears for part in _PACKED}
    return known


class Part(NamedTuple):
    """The rows of a linear layer that have one role."""

    name: str
    """Of the layer, in its block."""
    begin: int
    end: int
    rows: int
    """Of the whole layer."""


def parts(config: ModelConfig, index: int) -> dict[str, Part]:
    """The linear layers of a block by role, or parts of them: see `numbacalib.models.description`.

    Here and below `index` is the block's number.
    """
    del index  # all blocks are alike so far
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    inner, hidden = config.intermediate_size, config.hidden_size
    rows = {
        "query": queries,
        "key": keys,
        "value": keys,
        "output": hidden,
        "gate": inner,
        "up": inner,
        "down": hidden,
    }
    linears = config.architecture.linears
    found, ends = {}, dict.fromkeys(linears.values(), 0)
    for role, name in linears.items():
        begin = ends[name]
        ends[name] += rows[role]
        found[role] = begin, ends[name]
    return {role: Part(name, *found[role], rows=ends[name]) for role, name in linears.items()}


def stages(config: ModelConfig, index: int) -> tuple[Stage, ...]:
    """The linear layers of a block in the order they run, grouped by the input they share."""
    linears = {role: part.name for role, part in parts(config, index).items()}

    def named(*roles: str) -> Stage:
        return tuple(dict.fromkeys(linears[role] for role in roles if role in linears))

    return named("query", "key", "value"), named("output"), named("gate", "up"), named("down")


def linear_shapes(config: ModelConfig, index: int) -> dict[str, tuple[int, ...]]:
    """Shapes [M, K] of a block's linear layers, by their tensor's name in the block."""
    columns = {
        "output": config.num_heads * config.head_dim,
        "down": config.intermediate_size,
    }
    return {
        f"{part.name}.weight": (part.rows, columns.get(role, config.hidden_size))
        for role, part in parts(config, index).items()
    }


def vector_shapes(config: ModelConfig, index: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a block's norms, and of the biases that this architecture has."""
    shapes: dict[str, tuple[int, ...]] = {}
    for role, name in config.architecture.norms.items():
        shape: tuple[int, ...] | None = (config.hidden_size,)
        if role in ("query", "key"):
            shape = _head_norm_shape(config, role)
        if shape is not None:
            shapes |= _norm_shapes(config, name, shape)
    biased = {"output": config.output_bias} | dict.fromkeys(
        ("query", "key", "value"), config.attention_bias
    )
    for role, part in parts(config, index).items():
        if biased.get(role, config.mlp_bias):
            shapes[f"{part.name}.bias"] = (part.rows,)
    return shapes


def outer_vector_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the final norm and of the head's bias, by their whole names."""
    shapes = _norm_shapes(config, NORM.removesuffix(".weight"), (config.hidden_size,))
    return shapes | ({HEAD_BIAS: (config.vocab_size,)} if config.head_bias else {})


def is_norm(config: ModelConfig, name: str) -> bool:
    """Whether a tensor is the weight of a norm, by its whole name."""
    norms = (f".{norm}.weight" for norm in config.architecture.norms.values())
    return name == NORM or name.endswith(tuple(norms))


def _head_norm_shape(config: ModelConfig, role: str) -> tuple[int, ...] | None:
    """Shape of the norm of queries or keys; None where there is none."""
    if not config.qk_norm:
        return None
    heads, size = config.num_heads if role == "query" else config.num_kv_heads, config.head_dim
    return {"head": (size,), "heads": (heads, size), "all": (heads * size,)}[
        config.architecture.qk_norm
    ]


def _norm_shapes(
    config: ModelConfig, name: str, shape: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    shapes = {f"{name}.weight": shape}
    return shapes | ({f"{name}.bias": shape} if config.architecture.norm_bias else {})
