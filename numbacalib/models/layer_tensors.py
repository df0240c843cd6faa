"""The tensors of a decoder: their names, their shapes, and those that have no place.

Outside of the blocks all decoders have the names that llama has in transformers; `Architecture.renamed`
says what files have instead. In a block they are the architecture's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from numbacalib.models.config import ModelConfig
from numbacalib.models.roles import columns_by_role, names_by_role, rows_by_role
from numbacalib.models.wrappers import beside_decoder, decoder_name

__all__ = ["EMBEDDINGS", "HEAD", "HEAD_BIAS", "NORM", "NORM_BIAS", "POSITIONS"]
__all__ += ["Part", "Stage", "canonical_name", "check_names", "denied", "is_buffer", "is_decoders"]
__all__ += ["is_linear", "is_norm", "module_name"]
__all__ += ["beside", "expert_parts", "expert_shapes", "expert_stages"]
__all__ += ["attention_stages", "linear_shapes", "mlp_stages", "outer_shapes", "parts"]
__all__ += ["stages", "vector_shapes"]

Stage = tuple[str, ...]
"""Short names of the layers of a block that share an input."""

EMBEDDINGS, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
POSITIONS = "model.embed_positions.weight"
NORM_BIAS, HEAD_BIAS = "model.norm.bias", "lm_head.bias"

# Roles of layers that read what attention does, in the order they run.
_ENTRIES = (
    *("query", "key", "value", "query_key_value", "query_gate", "attention_gate"),
    *("open", "query_key_value_open"),
)
_LAYER = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,8})\.(.+)")
# What belongs to the decoder, and so must be one of its tensors; anything else is beside it.
_DECODER = (
    "model.layers.",
    "model.embed_tokens.",
    "model.embed_positions.",
    "model.norm.",
    "lm_head.",
)
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
    "weight_global_scale",
    *("qweight", "qzeros", "scales", "g_idx"),
    *("scales", "biases"),
)


def canonical_name(name: str, config: ModelConfig) -> str:
    """The name that a tensor of a file has here; those of a base model have no ``model.``."""
    name = decoder_name(name)
    for theirs, ours in config.architecture.renamed.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return f"model.{name}" if name.startswith(_BARE) else name


def module_name(name: str, config: ModelConfig) -> str:
    """The name that a module has in transformers, by ours."""
    for theirs, ours in config.architecture.renamed.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def is_buffer(name: str, config: ModelConfig) -> bool:
    """Return whether a tensor is a table of an older version that nothing reads any more."""
    own = _LAYER.fullmatch(name) is not None and name.endswith(tuple(config.architecture.buffers))
    return own or name.endswith(_BUFFERS)


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
        Whether linear layers may be quantized.
    """
    known: dict[int, set[str]] = {}
    outside = {EMBEDDINGS, HEAD, *outer_shapes(config)}
    if packed:
        outside |= set(_packed_parts((EMBEDDINGS, HEAD)))
    found = []
    for name in names:
        layer = _LAYER.fullmatch(name)
        if layer:
            index = int(layer[1])
            if index < config.num_layers and index not in known:
                known[index] = _known_in_block(config, index, packed)
            further = config.num_layers <= index < config.num_layers + config.further_layers
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
    """Parts of modules' names that say they are in the file but not of the decoder that is quantized.

    Towers and projectors of other media, and the layers after the last that predict further tokens.
    """
    last = config.num_layers
    further = [f"layers.{last + index}." for index in range(config.further_layers)]
    return [*further, *beside_decoder(names, _DECODER)]


def is_decoders(config: ModelConfig, name: str) -> bool:
    """Return whether a tensor is one that the decoder runs on: none that `beside` speaks of."""
    layer = _LAYER.fullmatch(name)
    return int(layer[1]) < config.num_layers if layer else name.startswith(_DECODER)


def _packed_parts(weights: Iterable[str]) -> Iterator[str]:
    """Names of what is in the place of weights that are quantized."""
    for name in weights:
        yield from (name.replace("weight", part) for part in _PACKED)


def _known_in_block(config: ModelConfig, index: int, packed: bool) -> set[str]:
    linears = linear_shapes(config, index) | expert_shapes(config, index)
    known = {*linears, *vector_shapes(config, index)}
    if packed:
        known |= set(_packed_parts(linears))
    return known


class Part(NamedTuple):
    """The rows of a linear layer that have one role."""

    name: str
    """Name of the layer, in its block."""
    begin: int
    end: int
    rows: int
    """Rows of the whole layer."""


def parts(config: ModelConfig, index: int) -> dict[str, Part]:
    """The linear layers of a block by role, or parts of them: see `numbacalib.models.description`.

    In the place of an MLP a block with experts has the one that all tokens share, or none. Here and below
    `index` is the block's number.
    """
    rows, linears = rows_by_role(config, index), names_by_role(config, index)
    found, ends = {}, dict.fromkeys(linears.values(), 0)
    for role, name in linears.items():
        begin = ends[name]
        ends[name] += rows[role]
        found[role] = begin, ends[name]
    return {role: Part(name, *found[role], rows=ends[name]) for role, name in linears.items()}


def stages(config: ModelConfig, index: int) -> tuple[Stage, ...]:
    """The linear layers of a block in the order they run, grouped by the input they share."""
    return attention_stages(config, index) + mlp_stages(config, index)


def attention_stages(config: ModelConfig, index: int) -> tuple[Stage, ...]:
    """The stages of a block's attention, or of what is in its place: two at least."""
    latent = config.latent
    if latent is None:
        return _named(config, index, _ENTRIES, ("output",))
    first = ("query_latent", "latent") if latent.query_size else ("query", "latent")
    others = [("query",)] if latent.query_size else []
    return _named(config, index, first, *others, ("key_value",), ("output",))


def mlp_stages(config: ModelConfig, index: int) -> tuple[Stage, ...]:
    """The stages of the MLP that all tokens go through; none where a block has none."""
    return _named(config, index, ("gate", "up"), ("down",))


def _named(config: ModelConfig, index: int, *stages_roles: tuple[str, ...]) -> tuple[Stage, ...]:
    """Names of the layers of each stage, by their roles."""
    linears = {role: part.name for role, part in parts(config, index).items()}
    found = (
        tuple(dict.fromkeys(linears[role] for role in roles if role in linears))
        for roles in stages_roles
    )
    return tuple(stage for stage in found if stage)


def expert_parts(config: ModelConfig, index: int) -> list[dict[str, Part]]:
    """The linear layers of each of a block's experts by role, ``gate``, ``up`` and ``down``."""
    mixture, names = config.mixture_of(index), config.architecture.experts
    if mixture is None or names is None:
        return []
    rows = {"gate": mixture.size, "up": mixture.size, "down": config.hidden_size}
    ends = {"gate": names.gate, "up": names.up, "down": names.down}
    return [
        {
            role: Part(f"{names.each}.{expert}.{ends[role]}", 0, count, count)
            for role, count in rows.items()
        }
        for expert in range(mixture.experts)
    ]


def expert_stages(config: ModelConfig, index: int) -> list[tuple[Stage, Stage]]:
    """The layers of each of a block's experts that share an input, in the order they run."""
    return [
        ((own["gate"].name, own["up"].name), (own["down"].name,))
        for own in expert_parts(config, index)
    ]


def expert_shapes(config: ModelConfig, index: int) -> dict[str, tuple[int, ...]]:
    """Shapes [M, K] of the linear layers of a block's experts, by their tensor's name in the block."""
    mixture = config.mixture_of(index)
    if mixture is None:
        return {}
    return {
        f"{part.name}.weight": (part.rows, mixture.size if role == "down" else config.hidden_size)
        for own in expert_parts(config, index)
        for role, part in own.items()
    }


def linear_shapes(config: ModelConfig, index: int) -> dict[str, tuple[int, ...]]:
    """Shapes [M, K] of a block's linear layers, by their tensor's name in the block."""
    columns = columns_by_role(config, index)
    return {
        f"{part.name}.weight": (part.rows, columns.get(role, config.hidden_size))
        for role, part in parts(config, index).items()
    }


def vector_shapes(config: ModelConfig, index: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a block's norms, and of the biases that this architecture has."""
    shapes: dict[str, tuple[int, ...]] = {}
    for role, name in config.architecture.norms.items():
        shape = _norm_shape(config, index, role)
        if shape is not None:
            shapes |= _norm_shapes(config, name, shape)
    for own in (parts(config, index), *expert_parts(config, index)):
        for role, part in own.items():
            if _is_biased(config, index, role):
                shapes[f"{part.name}.bias"] = (part.rows,)
    if config.architecture.block_scale:
        shapes[config.architecture.block_scale] = (1,)
    if config.architecture.sinks:
        shapes[config.architecture.sinks] = (config.num_heads,)
    return shapes | _router_shapes(config, index) | _delta_shapes(config, index)


def _is_biased(config: ModelConfig, index: int, role: str) -> bool:
    """Return whether a linear layer has a bias; of latent attention, only those that make latents."""
    if role in ("gate", "up", "down"):
        return config.mlp_bias
    if config.delta_of(index) is not None or role == "attention_gate":
        return False
    if role == "output":
        return config.output_bias
    makes_latent = config.latent is None or role in ("query_latent", "latent")
    return config.attention_bias and makes_latent


def _router_shapes(config: ModelConfig, index: int) -> dict[str, tuple[int, ...]]:
    """Shapes of what chooses and weighs experts: float32 as norms are, and never quantized."""
    mixture, names = config.mixture_of(index), config.architecture.experts
    if mixture is None or names is None:
        return {}
    shapes: dict[str, tuple[int, ...]] = {
        f"{names.router}.weight": (mixture.experts, config.hidden_size)
    }
    if mixture.router_bias:
        shapes[f"{names.router}.bias"] = (mixture.experts,)
    if names.correction:
        row = (1,) if names.correction_is_row else ()
        shapes[names.correction] = (*row, mixture.experts)
    if names.shared_gate:
        shapes[f"{names.shared_gate}.weight"] = (1, config.hidden_size)
    return shapes


def _delta_shapes(config: ModelConfig, index: int) -> dict[str, tuple[int, ...]]:
    """Shapes of what a gated delta net has beside its large layers: float32, and never quantized."""
    delta, names = config.delta_of(index), config.architecture.delta
    if delta is None or names is None:
        return {}
    heads = delta.value_heads
    scores = [heads, heads] if names.decays != names.rates else [2 * heads]
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.weight": (rows, config.hidden_size)
        for name, rows in zip(dict.fromkeys((names.rates, names.decays)), scores, strict=True)
    }
    return shapes | {
        f"{names.convolution}.weight": (2 * delta.keys + delta.values, 1, delta.taps),
        f"{names.norm}.weight": (delta.value_dim,),
        names.slopes: (heads,),
        names.biases: (heads,),
    }


def outer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the final norm, of the head's bias and of positions, by their whole names."""
    shapes = _norm_shapes(config, NORM.removesuffix(".weight"), (config.hidden_size,))
    if config.head_bias:
        shapes[HEAD_BIAS] = (config.vocab_size,)
    if config.positions:
        shapes[POSITIONS] = (config.positions, config.hidden_size)
    return shapes


def is_linear(name: str, config: ModelConfig) -> bool:
    """Return whether a tensor is the weight of a linear layer of a block, by its whole name."""
    layer = _LAYER.fullmatch(name)
    delta = config.architecture.delta
    linears = [*config.architecture.linears.values(), *(delta.linears.values() if delta else ())]
    return layer is not None and layer[2].removesuffix(".weight") in linears


def is_norm(config: ModelConfig, name: str) -> bool:
    """Return whether a tensor is the weight of a norm, by its whole name."""
    norms = (f".{norm}.weight" for norm in config.architecture.norms.values())
    return name == NORM or name.endswith(tuple(norms))


def _norm_shape(config: ModelConfig, index: int, role: str) -> tuple[int, ...] | None:
    """Shape of a norm of a block; None where there is none."""
    latent = config.latent
    if latent is not None and role in ("query_latent", "latent"):
        size = latent.size if role == "latent" else latent.query_size
        return (size,) if size else None
    if role not in ("query", "key"):
        return (config.hidden_size,)
    if not config.qk_norm or config.delta_of(index) is not None:
        return None
    kv_heads, size = config.heads_of(index)
    heads = config.num_heads if role == "query" else kv_heads
    return {"head": (size,), "heads": (heads, size), "all": (heads * size,)}[
        config.architecture.qk_norm
    ]


def _norm_shapes(
    config: ModelConfig, name: str, shape: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    shapes = {f"{name}.weight": shape}
    return shapes | ({f"{name}.bias": shape} if config.architecture.norm_bias else {})
