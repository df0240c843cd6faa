"""GGUF files of whole models, which llama.cpp and what stands on it load."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.format import Format, GridRules, LayerGrid, ModelWriter
from numbacalib.formats.gguf_blocks import BLOCK_TYPES, BlockWeight, pack_blocks
from numbacalib.formats.gguf_layers import BlockLayers
from numbacalib.formats.gguf_metadata import (
    QUANTIZATION_VERSION,
    architecture_of,
    model_metadata,
    rope_tensors,
)
from numbacalib.formats.gguf_mixes import (
    MIXES,
    Layers,
    file_type,
    tensor_type_of,
)
from numbacalib.formats.gguf_mxfp4 import MXFP4, MXFP4_GRID, pack_mxfp4
from numbacalib.formats.gguf_scales import BlockFinder, split_scales
from numbacalib.formats.gguf_vocabulary import vocabulary_metadata
from numbacalib.formats.gguf_writer import GGUFWriter, PlannedTensor, encoded
from numbacalib.methods import QuantizedWeight, rtn
from numbacalib.methods.block_scales import block_scales
from numbacalib.models.checkpoint import TensorInfo
from numbacalib.models.description import LATENT
from numbacalib.models.gguf import GGUFCheckpoint
from numbacalib.models.gguf_architectures import GGUF_ARCHITECTURES
from numbacalib.models.gguf_layouts import LATENT_PARTS, latent_parts, row_order
from numbacalib.models.gguf_names import expert_number, gguf_name
from numbacalib.models.gguf_types import TensorType, type_named
from numbacalib.models.layer_tensors import EMBEDDINGS, HEAD, is_linear, is_norm, linear_shapes
from numbacalib.models.safetensors_file import StoredTensor
from numbacalib.models.tensor_names import is_decoders

if TYPE_CHECKING:
    from numbacalib.models import Checkpoint
    from numbacalib.models.config import ModelConfig

log = logging.getLogger("numbacalib")

ROWS = 4096
"""Rows of embeddings and of the head that are quantized together."""
PREFIX = "gguf:"
_FLOATS = {"float16": "F16", "bfloat16": "BF16"}
"""Types of matrices that stay as they are, by their dtype; F32 of all others."""


class GGUF(Format):
    """One of llama.cpp's mixes of types: it says the type of each tensor, and so bits and groups."""

    rules = GridRules(bits=(2, 3, 4, 5, 6, 8), channel_multiple=32)
    own_grid = True
    own_head = True

    def __init__(self, mix: str, config: ModelConfig | None = None) -> None:
        self.mix, self.name = mix, f"{PREFIX}{mix}"
        self._config = config

    def of_model(self, config: ModelConfig) -> GGUF:
        """See `Format`."""
        return GGUF(self.mix, config)

    def holds(self, layer: str) -> bool:
        """See `Format`; heads and embeddings too, but no layer that is stored as two."""
        if layer.endswith(f".{LATENT['key_value']}"):
            return False
        return super().holds(layer) or f"{layer}.weight" in (EMBEDDINGS, HEAD)

    def opened_at(self, directory: Path) -> Path:
        """See `Format`."""
        return directory / _file_name(self.mix)

    def check(self, asked: LayerGrid) -> None:
        """See `Format`; bits and groups are the mix's, whatever is asked for."""

    def grids(
        self, weights: Mapping[str, TensorInfo], asked: Mapping[str, LayerGrid]
    ) -> dict[str, LayerGrid]:
        """See `Format`; of a model's own, as `of_model` returns it."""
        del asked
        assert self._config is not None
        for layer, info in weights.items():
            self.rules.check_shape(layer, info.shape)
        types = _Types(self.mix, self._config)
        return {
            layer: block_grid(types.of(f"{layer}.weight", info.shape[1]))
            for layer, info in weights.items()
        }

    def writer(
        self, directory: Path, checkpoint: Checkpoint, grids: Mapping[str, LayerGrid]
    ) -> FileWriter:
        """See `Format`."""
        return FileWriter(self.mix, directory, checkpoint, grids)

    def recognizes(self, checkpoint: Checkpoint) -> bool:
        """Return False: `GGUFCheckpoint` itself shows the weights that blocks stand for."""
        del checkpoint
        return False

    def layers(self, checkpoint: Checkpoint) -> BlockLayers:
        """See `Format`."""
        return BlockLayers(checkpoint)

    def left_out(self, checkpoint: Checkpoint) -> dict[str, str]:
        """See `Format`: towers, and layers that predict further tokens."""
        names = (name for name in checkpoint.names() if not is_decoders(checkpoint.config, name))
        return dict.fromkeys(names, "llama.cpp's file of a decoder has no place for it")

    def kept(self, config: ModelConfig, name: str, tensor: StoredTensor) -> StoredTensor:
        """See `Format`: norms are stored as they multiply, in float32, and no matrix is transposed."""
        offset, values = np.float32(config.architecture.norm_offset), tensor.array()
        if config.architecture.transposed and values is not None and is_linear(name, config):
            return StoredTensor.of(np.ascontiguousarray(values.T))
        if not offset or values is None or not is_norm(config, name):
            return tensor
        return StoredTensor.of(values.astype(np.float32) + offset - offset)


GGUF_FORMATS = tuple(map(GGUF, MIXES))


def _file_name(mix: str) -> str:
    return f"model-{mix}.gguf"


def block_grid(kind: str) -> LayerGrid:
    """Return the grid of one of GGML's types."""
    if kind == MXFP4:
        return MXFP4_GRID
    grid = BLOCK_TYPES[kind].grid
    dtype = np.dtype(np.float32)
    return LayerGrid(grid.bits, grid.group_size, not grid.minima, dtype, BlockFinder(kind))


class _Types:
    """Types that a mix gives to the matrices of a model."""

    def __init__(self, mix: str, config: ModelConfig) -> None:
        depth, heads_per_kv = config.num_layers, config.num_heads // config.num_kv_heads
        architecture = architecture_of(config)
        large = depth == 80 and (
            architecture == "qwen2" or (architecture == "llama" and heads_per_kv > 1)
        )
        experts = config.mixture.experts if config.mixture else 0
        tied, falcon = config.tie_word_embeddings, architecture == "falcon"
        self._layers = Layers(depth, heads_per_kv, tied, experts, large, falcon)
        self._mix, self._model_type = mix, config.model_type

    def of(self, name: str, channels: int) -> str:
        """Return the type of a matrix by Hugging Face's name, with K channels."""
        stored = gguf_name(name, self._model_type)
        return tensor_type_of(self._mix, stored, channels, self._layers)


class _Place(NamedTuple):
    """Place where a tensor of the source goes: a tensor of the file, or one expert's part of it."""

    stored: str
    kind: TensorType
    shape: tuple[int, ...]
    """Of this part."""
    expert: int | None

    @property
    def planned(self) -> PlannedTensor:
        """The part alone."""
        return PlannedTensor(self.kind, self.shape)


class FileWriter(ModelWriter):
    """Writes ``model-<mix>.gguf``: see `ModelWriter`."""

    def __init__(
        self, mix: str, directory: Path, checkpoint: Checkpoint, grids: Mapping[str, LayerGrid]
    ) -> None:
        self._checkpoint = checkpoint
        self._config = config = checkpoint.config
        self._paired = GGUF_ARCHITECTURES[architecture_of(config)].paired
        self._offset = np.float32(config.architecture.norm_offset)
        self._rope = rope_tensors(config)
        self._types = _Types(mix, config)
        self._places = {
            name: self._place(name, grids)
            for name in checkpoint.names()
            if is_decoders(config, name)
        }
        self._latents = {
            name: _latent_places(place, config)
            for name, place in self._places.items()
            if name.endswith(f".{LATENT['key_value']}.weight")
        }
        self._given: set[str] = set()
        stored = ([*self._latents.get(name, [place])] for name, place in self._places.items())
        planned = _planned(chain.from_iterable(stored), config)
        for name, values in self._rope.items():
            planned[name] = PlannedTensor(type_named("F32"), values.shape)
        self._warn_of_fallbacks()
        if left := len(checkpoint.names()) - len(self._places):
            log.warning("%d tensors that are not the decoder's are left out", left)
        path = directory / _file_name(mix)
        self._file = GGUFWriter(path, _metadata(checkpoint, mix), planned)
        self.planned_bytes = self._file.planned_bytes

    def _place(self, name: str, grids: Mapping[str, LayerGrid]) -> _Place:
        """Find a tensor's place: matrices on grids, embeddings and head in the mix's types."""
        stored = gguf_name(name, self._config.model_type, self._config.variant)
        shape, dtype = self._checkpoint.info(name)
        expert = expert_number(name, self._config.model_type)
        kind = "F32"
        if name.removesuffix(".weight") in grids or name in (EMBEDDINGS, HEAD):
            kind = self._types.of(name, shape[1])
        elif len(shape) == 2 and (expert is not None or name in self._linears):  # left as it is
            kind = _FLOATS.get(dtype.name, "F32")
        experts = self._config.architecture.experts
        row = experts is not None and name.endswith(experts.rows)  # a vector in GGUF
        return _Place(stored, type_named(kind), shape[1:] if row else shape, expert)

    @cached_property
    def _linears(self) -> set[str]:
        config = self._config
        return {
            f"model.layers.{layer}.{name}"
            for layer in range(config.num_layers)
            for name in linear_shapes(config, layer)
        }

    def _warn_of_fallbacks(self) -> None:
        others = {
            place.stored: place
            for name, place in self._places.items()
            if place.kind.name in BLOCK_TYPES and place.kind.name != self._types.of(name, 256)
        }
        if others:
            name, place = next(iter(others.items()))
            log.warning(
                "%d tensors have rows that are no multiple of 256 (%s: K = %d) and get types in blocks of "
                "32, as llama.cpp gives them",
                len(others),
                name,
                place.shape[-1],
            )

    def __enter__(self) -> FileWriter:
        self._file.__enter__()
        return self

    def add_layer(self, name: str, quantized: QuantizedWeight) -> int:
        """See `ModelWriter`."""
        place = self._places[f"{name}.weight"]
        if place.kind.name == MXFP4:
            rows = pack_mxfp4(quantized)
            order = self._row_order(f"{name}.weight")
            self._write(f"{name}.weight", [rows if order is None else rows[order]])
            return place.planned.size
        grid = BLOCK_TYPES[place.kind.name].grid
        blocks = split_scales(quantized.scales, quantized.zeros, grid)
        weight = BlockWeight(quantized.codes, blocks)
        order = self._row_order(f"{name}.weight")
        if order is not None:
            weight = weight.rows(order)
        parts = (
            pack_blocks(weight.rows(slice(first, first + ROWS)), place.kind.name)
            for first in range(0, len(weight.codes), ROWS)
        )
        self._write(f"{name}.weight", parts)
        return place.planned.size

    def add(self, name: str, tensor: NDArray[Any]) -> None:
        """See `ModelWriter`."""
        place = self._places[name]
        order = self._row_order(name)
        values = tensor if order is None else tensor[order]
        if self._offset and is_norm(self._config, name):
            values = values.astype(np.float32) + self._offset
        stored = np.ascontiguousarray(values, place.kind.dtype)
        self._write(name, [stored.reshape(-1).view(np.uint8)])

    def _write(self, name: str, parts: Iterable[NDArray[np.uint8]]) -> None:
        place = self._places[name]
        begin = (place.expert or 0) * place.planned.size
        for part in parts:
            self._file.add(place.stored, part.ravel(), begin)
            begin += part.size
        self._given.add(name)

    def _row_order(self, name: str) -> NDArray[np.int64] | None:
        return row_order(self._config, name, paired=self._paired)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            for name in self._places:
                if name not in self._given:
                    self._copy(name)
            for name, values in self._rope.items():
                self._file.add(name, values.astype("<f4").view(np.uint8))
        self._file.__exit__(kind, error, traceback)

    def _copy(self, name: str) -> None:
        """Write what no call gave: embeddings and head by round-to-nearest, the rest as it is."""
        kind = self._places[name].kind
        if name in self._latents:
            parts = latent_parts(self._config, self._checkpoint.tensor(name))
            for place, part in zip(self._latents[name], parts, strict=True):
                stored = np.ascontiguousarray(part, kind.dtype)
                self._file.add(place.stored, stored.reshape(-1).view(np.uint8))
            return
        if kind.name not in BLOCK_TYPES:
            self.add(name, self._checkpoint.tensor(name))
            return
        tiles = self._checkpoint.tiles(name, ROWS)
        self._write(name, (pack_blocks(nearest(tile, kind.name), kind.name) for tile in tiles))


def _latent_places(place: _Place, config: ModelConfig) -> list[_Place]:
    """Places of the two parts of a matrix that makes keys and values of a latent vector."""
    parts = latent_parts(config, np.empty(place.shape, np.bool_))
    return [
        place._replace(stored=place.stored.replace("attn_kv_b", own), shape=part.shape)
        for own, part in zip(LATENT_PARTS, parts, strict=True)
    ]


def _planned(places: Iterable[_Place], config: ModelConfig) -> dict[str, PlannedTensor]:
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


def nearest(weight: NDArray[Any], kind: str, importance: NDArray | None = None) -> BlockWeight:
    """Round a weight [M, K] to the nearest on searched blocks of one of GGML's types."""
    grid = BLOCK_TYPES[kind].grid
    stored = block_scales(weight, grid, importance)
    scales, zeros = stored.grids(grid)
    quantized = rtn(
        weight,
        bits=grid.bits,
        group_size=grid.group_size,
        symmetric=not grid.minima,
        scale_dtype=np.float32,
        scales=scales,
        zeros=zeros if grid.minima else None,
    )
    return BlockWeight(quantized.codes, stored)


def _metadata(checkpoint: Checkpoint, mix: str) -> dict[str, bytes]:
    """Return the file's metadata: those of a GGUF source as they are, others made of its configuration."""
    own = {
        "general.file_type": encoded(file_type(mix)),
        "general.quantization_version": encoded(QUANTIZATION_VERSION),
    }
    if isinstance(checkpoint, GGUFCheckpoint):
        return checkpoint.metadata_bytes() | own
    made = model_metadata(checkpoint) | vocabulary_metadata(checkpoint)
    return {key: encoded(value) for key, value in made.items()} | own
