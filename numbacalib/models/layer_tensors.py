"""The tensors of a decoder: their names and their shapes.

Outside of the blocks all decoders have llama's names in transformers; `Architecture.renamed` maps those in
files to them. In a block names are the architecture's own.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from numbacalib.models.config import ModelConfig
from numbacalib.models.roles import columns_by_role, names_by_role, rows_by_role

__all__ = ["EMBEDDINGS", "HEAD", "HEAD_BIAS", "LAYER_NORM", "LAYER_PROJECTION"]
__all__ += ["LAYER_TABLE", "NORM", "NORM_BIAS", "POSITIONS", "Part", "Stage"]
__all__ += ["attention_stages", "expert_parts", "expert_shapes", "expert_stages"]
__all__ += ["is_linear", "is_norm", "layer_input_stages", "layer_of", "linear_shapes"]
__all__ += ["mlp_stages", "outer_shapes", "parts", "stages", "vector_shapes"]

Stage = tuple[str, ...]
"""Short names of the layers of a block that share an input."""

EMBEDDINGS, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
POSITIONS = "model.embed_positions.weight"
NORM_BIAS, HEAD_BIAS = "model.norm.bias", "lm_head.bias"
# Per-layer embeddings: `numbacalib.models.layer_inputs`.
LAYER_TABLE = "model.embed_tokens_per_layer.weight"
LAYER_PROJECTION = "model.per_layer_model_projection.weight"
LAYER_NORM = "model.per_layer_projection_norm.weight"

# Roles of the layers that read the input of attention, in execution order.
_ENTRIES = (
    *("query", "key", "value", "query_key_value", "query_gate", "attention_gate"),
    *("open", "query_key_value_open", "thirds", "mixed"),
)
_LAYER = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,8})\.(.+)")


class Part(NamedTuple):
    """The rows of a linear layer with one role."""

    name: str
    """Name of the layer in its block."""
    begin: int
    end: int
    rows: int
    """Rows of the whole layer."""


def parts(config: ModelConfig, index: int) -> dict[str, Part]:
    """Return the linear layers of a block, or parts of them, by role: see `numbacalib.models.description`.

    In a block with experts the MLP is the shared one, if any. Here and below `index` is the block's number.
    """
    rows, linears = rows_by_role(config, index), names_by_role(config, index)
    found, ends = {}, dict.fromkeys(linears.values(), 0)
    for role, name in linears.items():
        begin = ends[name]
        ends[name] += rows[role]
        found[role] = begin, ends[name]
    return {role: Part(name, *found[role], rows=ends[name]) for role, name in linears.items()}


def stages(config: ModelConfig, index: int) -> tuple[Stage, ...]:
    """Return the linear layers of a block in execution order, grouped by shared input."""
    halves = attention_stages(config, index) + mlp_stages(config, index)
    return halves + layer_input_stages(config, index)


def attention_stages(config: ModelConfig, index: int) -> tuple[Stage, ...]:
    """Return the stages of a block's attention, or of its replacement: at least two, unless it has none."""
    latent = config.latent
    if latent is None:
        return _named(config, index, _ENTRIES, ("output",))
    first = ("query_latent", "latent") if latent.query_size else ("query", "latent")
    others = [("query",)] if latent.query_size else []
    return _named(config, index, first, *others, ("key_value",), ("output",))


def mlp_stages(config: ModelConfig, index: int) -> tuple[Stage, ...]:
    """Return the stages of a block's MLP, or of the shared MLP beside experts; none without one."""
    return _named(config, index, ("gate", "up"), ("down",))


def layer_input_stages(config: ModelConfig, index: int) -> tuple[Stage, ...]:
    """Return the stages of a block's per-layer embeddings; none without them."""
    return _named(config, index, ("layer_gate",), ("layer_output",))


def _named(config: ModelConfig, index: int, *stages_roles: tuple[str, ...]) -> tuple[Stage, ...]:
    """Return the layers' names of each stage, given their roles."""
    linears = {role: part.name for role, part in parts(config, index).items()}
    found = (
        tuple(dict.fromkeys(linears[role] for role in roles if role in linears))
        for roles in stages_roles
    )
    return tuple(stage for stage in found if stage)


def expert_parts(config: ModelConfig, index: int) -> list[dict[str, Part]]:
    """Return the linear layers of each of a block's experts by role, ``gate``, ``up`` and ``down``."""
    mixture, names = config.mixture_of(index), config.architecture.experts
    if mixture is None or names is None:
        return []
    size = mixture.input_size(config.hidden_size)
    rows = {"gate": mixture.size, "up": mixture.size, "down": size}
    ends = {"gate": names.gate, "up": names.up, "down": names.down}
    return [
        {
            role: Part(f"{names.each}.{expert}.{ends[role]}", 0, count, count)
            for role, count in rows.items()
            if ends[role]
        }
        for expert in range(mixture.experts)
    ]


def expert_stages(config: ModelConfig, index: int) -> list[tuple[Stage, Stage]]:
    """Return the layers of each of a block's experts in execution order, grouped by shared input."""
    return [
        (tuple(own[role].name for role in ("gate", "up") if role in own), (own["down"].name,))
        for own in expert_parts(config, index)
    ]


def expert_shapes(config: ModelConfig, index: int) -> dict[str, tuple[int, ...]]:
    """Shapes [M, K] of the linear layers of a block's experts, by tensor name in the block."""
    mixture = config.mixture_of(index)
    if mixture is None:
        return {}
    size = mixture.input_size(config.hidden_size)
    return {
        f"{part.name}.weight": (part.rows, mixture.size if role == "down" else size)
        for own in expert_parts(config, index)
        for role, part in own.items()
    }


def layer_of(name: str) -> tuple[int, str] | None:
    """Return the number of a tensor's block, and its name there; None for tensors outside the blocks."""
    layer = _LAYER.fullmatch(name)
    return None if layer is None else (int(layer[1]), layer[2])


def linear_shapes(config: ModelConfig, index: int) -> dict[str, tuple[int, ...]]:
    """Shapes [M, K] of a block's linear layers, by tensor name in the block."""
    columns = columns_by_role(config, index)
    return {
        f"{part.name}.weight": (part.rows, columns.get(role, config.hidden_size))
        for role, part in parts(config, index).items()
    }


def vector_shapes(config: ModelConfig, index: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a block's tensors other than linear weights: norms, biases, routers and mixers' parts."""
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
    if (gate := config.architecture.head_gate) and config.attends(index):
        shapes[f"{gate}.weight"] = (config.queries_of(index), config.hidden_size)
    if config.architecture.sinks:
        shapes[config.architecture.sinks] = (config.queries_of(index),)
    names, convolution = config.architecture.convolution, config.convolution_of(index)
    if names is not None and convolution is not None:
        shapes[f"{names.taps}.weight"] = (config.hidden_size, 1, convolution.taps)
    mixers = _delta_shapes(config, index) | _state_space_shapes(config, index)
    return shapes | _router_shapes(config, index) | mixers


def _is_biased(config: ModelConfig, index: int, role: str) -> bool:
    """Return whether a linear layer has a bias; up-projections of latent attention have none."""
    if role in ("gate", "up", "down"):
        return config.mlp_bias
    if not config.attends(index) or role in (
        "attention_gate",
        "layer_gate",
        "layer_output",
    ):
        return False
    if role == "output":
        return config.output_bias
    makes_latent = config.latent is None or role in ("query_latent", "latent")
    return config.attention_bias and makes_latent


def _router_shapes(config: ModelConfig, index: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the router's tensors: float32 like norms, and never quantized."""
    mixture, names = config.mixture_of(index), config.architecture.experts
    if mixture is None or names is None:
        return {}
    shapes: dict[str, tuple[int, ...]] = {
        f"{names.router}.weight": (mixture.experts, config.hidden_size)
    }
    if mixture.router_bias:
        shapes[f"{names.router}.bias"] = (mixture.experts,)
    if names.router_norm:
        shapes[names.router_norm] = (config.hidden_size,)
    if names.factors:
        shapes[names.factors] = (mixture.experts,)
    if names.correction:
        row = (1,) if names.correction_is_row else ()
        shapes[names.correction] = (*row, mixture.experts)
    if size := mixture.latent_size:
        shapes[f"{names.latent}.weight"] = (size, config.hidden_size)
        shapes[f"{names.latent_output}.weight"] = (config.hidden_size, size)
    if names.shared_gate:
        shapes[f"{names.shared_gate}.weight"] = (1, config.hidden_size)
    return shapes


def _delta_shapes(config: ModelConfig, index: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a gated delta net's small tensors: float32, and never quantized."""
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


def _state_space_shapes(config: ModelConfig, index: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a Mamba 2 layer's small tensors: float32, and never quantized."""
    space, names = config.state_space_of(index), config.architecture.state_space
    if space is None or names is None:
        return {}
    channels = space.values + 2 * space.keys
    bias = {f"{names.convolution}.bias": (channels,)} if space.convolution_bias else {}
    return bias | {
        f"{names.convolution}.weight": (channels, 1, space.taps),
        f"{names.norm}.weight": (space.values,),
        names.slopes: (space.heads,),
        names.biases: (space.heads,),
        names.shares: (space.heads,),
    }


def outer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the final norm, head bias, positions and per-layer embeddings, by full name."""
    shapes = _norm_shapes(config, NORM.removesuffix(".weight"), (config.hidden_size,))
    if config.head_bias:
        shapes[HEAD_BIAS] = (config.vocab_size,)
    if config.positions:
        shapes[POSITIONS] = (config.positions, config.hidden_size)
    if size := config.layer_input_size:
        shapes[LAYER_TABLE] = (config.vocab_size, config.num_layers * size)
        shapes[LAYER_PROJECTION] = (config.num_layers * size, config.hidden_size)
        shapes[LAYER_NORM] = (size,)
    return shapes


def is_linear(name: str, config: ModelConfig) -> bool:
    """Return whether a tensor is the weight of a linear layer of a block, by its full name."""
    layer = layer_of(name)
    own = config.architecture
    linears = [*own.linears.values()]
    for mixer in (own.delta, own.convolution, own.state_space):
        linears += mixer.linears.values() if mixer else ()
    return layer is not None and layer[1].removesuffix(".weight") in linears


def is_norm(config: ModelConfig, name: str) -> bool:
    """Return whether a tensor is the weight of a norm, by its full name."""
    norms = (f".{norm}.weight" for norm in config.architecture.norms.values())
    return name == NORM or name.endswith(tuple(norms))


def _norm_shape(config: ModelConfig, index: int, role: str) -> tuple[int, ...] | None:
    """Shape of a norm of a block; None if there is none."""
    latent = config.latent
    if latent is not None and role in ("query_latent", "latent"):
        size = latent.size if role == "latent" else latent.query_size
        return (size,) if size else None
    of_experts = role in ("experts", "experts_output", "shared_output")
    if of_experts and config.mixture_of(index) is None:
        return None
    if role == "layer_input_output" and not config.layer_input_size:
        return None
    if role not in ("query", "key"):
        return (config.hidden_size,)
    if not config.qk_norm or not config.attends(index):
        return None
    if role == "key" and config.key_source(index) is not None:
        return None
    kv_heads, size = config.heads_of(index)
    heads = config.queries_of(index) if role == "query" else kv_heads
    return {"head": (size,), "heads": (heads, size), "all": (heads * size,)}[
        config.architecture.qk_norm
    ]


def _norm_shapes(
    config: ModelConfig, name: str, shape: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    shapes = {f"{name}.weight": shape}
    return shapes | ({f"{name}.bias": shape} if config.architecture.norm_bias else {})
