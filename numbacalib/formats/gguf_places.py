"""Places of a model's tensors in a GGUF file, with their GGML types."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.gguf_metadata import architecture_of
from numbacalib.formats.gguf_mixes import Layers, tensor_type_of
from numbacalib.formats.gguf_writer import PlannedTensor
from numbacalib.models.description import LATENT
from numbacalib.models.gguf_architectures import GGUF_ARCHITECTURES
from numbacalib.models.gguf_layouts import latent_parts, part_rows, row_order
from numbacalib.models.gguf_names import expert_number, stored_names, variant_of
from numbacalib.models.gguf_types import TensorType, type_named
from numbacalib.models.gguf_values import stored_shape
from numbacalib.models.layer_tensors import (
    EMBEDDINGS,
    HEAD,
    LAYER_PROJECTION,
    LAYER_TABLE,
    linear_shapes,
)

if TYPE_CHECKING:
    from numbacalib.models.checkpoint import TensorInfo
    from numbacalib.models.config import ModelConfig

TABLES = (EMBEDDINGS, HEAD, LAYER_TABLE)
"""Matrices outside of the blocks that always have the mix's types."""
_FLOATS = {"float16": "F16", "bfloat16": "BF16"}
"""Types of unquantized matrices by dtype; F32 for all other dtypes."""


class Types:
    """Types that a mix gives to the matrices of a model."""

    def __init__(self, mix: str, config: ModelConfig) -> None:
        depth = config.num_layers
        mixed = [_is_mixed(config, index) for index in range(depth)]
        # llama.cpp takes the heads of the first block, which may have none
        heads_per_kv = 0 if mixed[0] else config.num_heads // config.num_kv_heads
        architecture = architecture_of(config)
        large = depth == 80 and (
            architecture == "qwen2" or (architecture == "llama" and heads_per_kv > 1)
        )
        experts = config.mixture.experts if config.mixture else 0
        tied, falcon = config.tie_word_embeddings, architecture == "falcon"
        own = [config.key_source(index) is None and not mixed[index] for index in range(depth)]
        if config.shared_values:
            own = [
                each and not shared for each, shared in zip(own, config.shared_values, strict=True)
            ]
        valued = () if all(own) else tuple(index for index in range(depth) if own[index])
        wide = tuple(index for index in range(depth) if config.has(index, "mlp"))
        wide = () if experts or len(wide) == depth else wide
        self._layers = Layers(depth, heads_per_kv, tied, experts, large, falcon, valued, wide)
        self._mix, self._model_type, self._variant = mix, config.model_type, variant_of(config)

    def of(self, name: str, channels: int) -> str:
        """Return the type of a matrix by Hugging Face's name, with K channels; all its parts have it."""
        stored, *_ = stored_names(name, self._model_type, self._variant)
        return tensor_type_of(self._mix, stored, channels, self._layers)


def _is_mixed(config: ModelConfig, index: int) -> bool:
    """Return whether a block has no value layer: a convolution, Mamba 2 or an MLP alone."""
    mixers = config.convolution_of(index), config.state_space_of(index)
    return any(mixers) or not config.has(index, "attention")


class Place(NamedTuple):
    """Destination of a source tensor, or of a part of it: a tensor, or an expert's part of one."""

    stored: str
    kind: TensorType
    shape: tuple[int, ...]
    """Of this part."""
    expert: int | None
    rows: NDArray[np.int64] | None = None
    """Rows of the source in the place's order; None for all, in the source's order."""

    @property
    def planned(self) -> PlannedTensor:
        """Type and shape of this part."""
        return PlannedTensor(self.kind, self.shape)


class Places:
    """Finder of the places of a model's tensors.

    Parameters
    ----------
    mix : str
    config : ModelConfig
    grids : collection of str
        The layers that are quantized.
    """

    def __init__(self, mix: str, config: ModelConfig, grids: Collection[str]) -> None:
        self._config, self._grids = config, grids
        self.types = Types(mix, config)
        self._paired = GGUF_ARCHITECTURES[architecture_of(config)].paired
        self._linears = {
            f"model.layers.{layer}.{name}"
            for layer in range(config.num_layers)
            for name in linear_shapes(config, layer)
        }

    def of(self, name: str, info: TensorInfo) -> list[Place]:
        """Return the places of a tensor: several for a matrix that is stored in parts."""
        config = self._config
        stored = stored_names(name, config.model_type, variant_of(config))
        expert = expert_number(name, config.model_type)
        shape = stored_shape(config, name, info.shape)
        whole = Place(stored[0], type_named(self._kind(name, info, expert)), shape, expert)
        if len(stored) == 1:
            return [whole._replace(rows=row_order(config, name, paired=self._paired))]
        if name.endswith(f".{LATENT['key_value']}.weight"):
            parts = latent_parts(config, np.empty(shape, np.bool_))
            both = zip(stored, parts, strict=True)
            return [whole._replace(stored=each, shape=part.shape) for each, part in both]
        return [
            whole._replace(stored=each, shape=(len(rows), *shape[1:]), rows=rows)
            for each, rows in zip(stored, part_rows(config, shape[0]), strict=True)
        ]

    def _kind(self, name: str, info: TensorInfo, expert: int | None) -> str:
        """Return the type of a tensor: the mix's for matrices on grids and for tables."""
        if name.removesuffix(".weight") in self._grids or name in TABLES:
            return self.types.of(name, info.shape[1])
        kept = expert is not None or name in self._linears or name == LAYER_PROJECTION
        return _FLOATS.get(info.dtype.name, "F32") if len(info.shape) == 2 and kept else "F32"


def planned_tensors(places: Iterable[Place], config: ModelConfig) -> dict[str, PlannedTensor]:
    """Return the tensors of the file, in its order.

    Raises
    ------
    ValueError
        If experts that are one tensor would be of several types.
    """
    planned: dict[str, PlannedTensor] = {}
    for place in places:
        shape = place.shape
        if place.expert is not None:
            assert config.mixture is not None
            shape = config.mixture.experts, *shape
        tensor = PlannedTensor(place.kind, shape)
        before = planned.setdefault(place.stored, tensor)
        if before != tensor:
            raise ValueError(
                f"skip: expected all or none of the experts of {place.stored}, which are one tensor in GGUF"
            )
    return planned
