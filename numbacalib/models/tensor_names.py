"""Names of a model's tensors: what files call them, and which are none of the decoder that is run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from numbacalib.models.config import ModelConfig
from numbacalib.models.layer_tensors import (
    EMBEDDINGS,
    HEAD,
    expert_shapes,
    layer_of,
    linear_shapes,
    outer_shapes,
    vector_shapes,
)
from numbacalib.models.wrappers import beside_decoder, decoder_name

__all__ = [
    "aliases",
    "beside",
    "canonical_name",
    "check_names",
    "denied",
    "is_buffer",
    "is_decoders",
]
__all__ += ["module_name"]

# What belongs to the decoder, and so must be one of its tensors; anything else is beside it.
_DECODER = (
    "model.layers.",
    "model.embed_tokens.",
    "model.embed_positions.",
    "model.norm.",
    "model.embed_tokens_per_layer.",
    "model.per_layer_",
    "lm_head.",
)
# The base model of transformers, saved alone, leaves out "model.".
_BARE = ("layers.", "embed_tokens.", "norm.", "embed_tokens_per_layer.", "per_layer_")
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


def aliases(name: str, config: ModelConfig) -> list[str]:
    """Further names that a module has in transformers: see `Architecture.aliases`."""
    others = config.architecture.aliases.items()
    return [name.removesuffix(own) + other for own, other in others if name.endswith(own)]


def is_buffer(name: str, config: ModelConfig) -> bool:
    """Return whether a tensor is a table of an older version that nothing reads any more."""
    own = layer_of(name) is not None and name.endswith(tuple(config.architecture.buffers))
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
        if layer := layer_of(name):
            index, tensor = layer
            if index < config.num_layers and index not in known:
                known[index] = _known_in_block(config, index, packed)
            further = config.num_layers <= index < config.num_layers + config.further_layers
            own = tensor in known.get(index, ()) or _of_selector(config, layer)
            has_place = further or own
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

    Towers and projectors of other media, the layers after the last that predict further tokens, and what
    chooses positions for attention.
    """
    last = config.num_layers
    further = [f"layers.{last + index}." for index in range(config.further_layers)]
    selectors = [config.architecture.selector] if config.architecture.selector else []
    return [*further, *selectors, *beside_decoder(names, _DECODER)]


def is_decoders(config: ModelConfig, name: str) -> bool:
    """Return whether a tensor is one that the decoder runs on: none that `beside` speaks of."""
    layer = layer_of(name)
    if layer is None:
        return name.startswith(_DECODER)
    return layer[0] < config.num_layers and not _of_selector(config, layer)


def _of_selector(config: ModelConfig, layer: tuple[int, str]) -> bool:
    """Return whether a tensor of a layer is of what chooses positions: see `Architecture.selector`."""
    selector, (index, tensor) = config.architecture.selector, layer
    return bool(selector) and tensor.startswith(selector) and index < config.num_layers


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
