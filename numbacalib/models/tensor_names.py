"""Names of a model's tensors: mapping from names in files, and tensors outside the decoder."""

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

# Prefixes of the decoder: such names must be tensors of its configuration; others lie outside it.
_DECODER = (
    "model.layers.",
    "model.embed_tokens.",
    "model.embed_positions.",
    "model.norm.",
    "model.embed_tokens_per_layer.",
    "model.per_layer_",
    "lm_head.",
)
# transformers' base model, saved without the head, omits "model.".
_BARE = ("layers.", "embed_tokens.", "norm.", "embed_tokens_per_layer.", "per_layer_")
# Buffers that older versions saved; they are recomputed.
_BUFFERS = (
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    ".masked_bias",
    ".position_ids",
)
# Suffixes that replace a linear layer's ``weight`` in quantized checkpoints: of compressed-tensors, of GPTQ
# and AWQ, and of MLX, which also has a ``weight``.
_PACKED = (
    *("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"),
    "weight_global_scale",
    *("qweight", "qzeros", "scales", "g_idx"),
    *("scales", "biases"),
)


def canonical_name(name: str, config: ModelConfig) -> str:
    """Return our name of a file's tensor; the names of a base model get ``model.``."""
    name = decoder_name(name)
    for theirs, ours in config.architecture.renamed.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return f"model.{name}" if name.startswith(_BARE) else name


def module_name(name: str, config: ModelConfig) -> str:
    """Return transformers' name of a module, by ours."""
    for theirs, ours in config.architecture.renamed.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def aliases(name: str, config: ModelConfig) -> list[str]:
    """Return transformers' other names of a module: see `Architecture.aliases`."""
    others = config.architecture.aliases.items()
    return [name.removesuffix(own) + other for own, other in others if name.endswith(own)]


def is_buffer(name: str, config: ModelConfig) -> bool:
    """Return whether a tensor is an unused buffer of an older version."""
    own = layer_of(name) is not None and name.endswith(tuple(config.architecture.buffers))
    return own or name.endswith(_BUFFERS)


def denied(config: ModelConfig, names: Iterable[str], *, packed: bool = False) -> list[str]:
    """Return tensors of the decoder that its configuration has no place for.

    They show that the configuration does not describe the model: biases that it denies, more layers,
    experts. Time depends on the number of names, whatever ``num_layers`` is.

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
            further = config.num_layers <= index < config.num_layers + config.mtp_layers
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
    """Return parts of module names that identify modules of the file outside the quantized decoder.

    These are towers and projectors of other modalities, multi-token prediction (MTP) layers, and indexers
    of sparse attention.
    """
    last = config.num_layers
    further = [f"layers.{last + index}." for index in range(config.mtp_layers)]
    selectors = [config.architecture.selector] if config.architecture.selector else []
    return [*further, *selectors, *beside_decoder(names, _DECODER)]


def is_decoders(config: ModelConfig, name: str) -> bool:
    """Return whether the decoder uses a tensor: it is in none of the modules of `beside`."""
    layer = layer_of(name)
    if layer is None:
        return name.startswith(_DECODER)
    return layer[0] < config.num_layers and not _of_selector(config, layer)


def _of_selector(config: ModelConfig, layer: tuple[int, str]) -> bool:
    """Return whether a layer's tensor belongs to its indexer: see `Architecture.selector`."""
    selector, (index, tensor) = config.architecture.selector, layer
    return bool(selector) and tensor.startswith(selector) and index < config.num_layers


def _packed_parts(weights: Iterable[str]) -> Iterator[str]:
    """Yield the names of the tensors that may replace quantized weights."""
    for name in weights:
        yield from (name.replace("weight", part) for part in _PACKED)


def _known_in_block(config: ModelConfig, index: int, packed: bool) -> set[str]:
    linears = linear_shapes(config, index) | expert_shapes(config, index)
    known = {*linears, *vector_shapes(config, index)}
    if packed:
        known |= set(_packed_parts(linears))
    return known
