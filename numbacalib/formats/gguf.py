"""GGUF files of whole models, for llama.cpp and the programs built on it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.format import Format, GridRules, LayerGrid, ModelWriter
from numbacalib.formats.gguf_blocks import BLOCK_TYPES, BlockWeight, pack_blocks
from numbacalib.formats.gguf_layers import BlockLayers
from numbacalib.formats.gguf_metadata import (
    QUANTIZATION_VERSION,
    model_metadata,
    rope_tensors,
)
from numbacalib.formats.gguf_mixes import (
    MIXES,
    file_type,
)
from numbacalib.formats.gguf_mxfp4 import MXFP4, MXFP4_GRID, pack_mxfp4
from numbacalib.formats.gguf_places import Place, Places, Types, planned_tensors
from numbacalib.formats.gguf_scales import BlockFinder, in_file_columns, split_scales
from numbacalib.formats.gguf_vocabulary import vocabulary_metadata
from numbacalib.formats.gguf_writer import GGUFWriter, PlannedTensor, encoded
from numbacalib.methods import QuantizedWeight, rtn
from numbacalib.methods.block_scales import block_scales
from numbacalib.models.checkpoint import TensorInfo
from numbacalib.models.description import LATENT
from numbacalib.models.gguf import GGUFCheckpoint
from numbacalib.models.gguf_config import FURTHER
from numbacalib.models.gguf_layouts import Tiles, column_tiles, latent_parts
from numbacalib.models.gguf_types import type_named
from numbacalib.models.gguf_values import as_ours, as_stored, is_other
from numbacalib.models.layer_tensors import EMBEDDINGS, HEAD, is_linear
from numbacalib.models.safetensors_file import StoredTensor
from numbacalib.models.tensor_names import is_decoders

if TYPE_CHECKING:
    from numbacalib.models import Checkpoint
    from numbacalib.models.config import ModelConfig

log = logging.getLogger("numbacalib")

ROWS = 4096
"""Rows of embeddings and of the head that are quantized together."""
PREFIX = "gguf:"


class GGUF(Format):
    """One of llama.cpp's mixes of types: it determines each tensor's type, and so bits and groups."""

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
        """See `Format`; heads and embeddings too, but no layer that is stored as two tensors."""
        if layer.endswith(f".{LATENT['key_value']}"):
            return False
        return super().holds(layer) or f"{layer}.weight" in (EMBEDDINGS, HEAD)

    def opened_at(self, directory: Path) -> Path:
        """See `Format`."""
        return directory / _file_name(self.mix)

    def check(self, asked: LayerGrid) -> None:
        """See `Format`; the mix determines bits and groups."""

    def grids(
        self, weights: Mapping[str, TensorInfo], asked: Mapping[str, LayerGrid]
    ) -> dict[str, LayerGrid]:
        """See `Format`; only for a format from `of_model`."""
        del asked
        assert self._config is not None
        for layer, info in weights.items():
            self.rules.check_shape(layer, info.shape)
        types, config = Types(self.mix, self._config), self._config
        return {
            layer: block_grid(
                types.of(f"{layer}.weight", info.shape[1]), column_tiles(config, f"{layer}.weight")
            )
            for layer, info in weights.items()
        }

    def writer(
        self, directory: Path, checkpoint: Checkpoint, grids: Mapping[str, LayerGrid]
    ) -> FileWriter:
        """See `Format`."""
        return FileWriter(self.mix, directory, checkpoint, grids)

    def recognizes(self, checkpoint: Checkpoint) -> bool:
        """Return False: `GGUFCheckpoint` itself dequantizes its blocks."""
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
        """See `Format`: values stored in another form become float32, no matrix is stored transposed."""
        values = tensor.array()
        if config.architecture.transposed and values is not None and is_linear(name, config):
            return StoredTensor.of(np.ascontiguousarray(values.T))
        if values is None or not is_other(config, name):
            return tensor
        return StoredTensor.of(as_ours(config, name, as_stored(config, name, values)))


GGUF_FORMATS = tuple(map(GGUF, MIXES))


def _file_name(mix: str) -> str:
    return f"model-{mix}.gguf"


def block_grid(kind: str, tiles: Tiles | None = None) -> LayerGrid:
    """Return the grid of one of GGML's types; `tiles` is the order of the layer's columns in the file."""
    if kind == MXFP4:
        return MXFP4_GRID
    grid = BLOCK_TYPES[kind].grid
    dtype = np.dtype(np.float32)
    return LayerGrid(grid.bits, grid.group_size, not grid.minima, dtype, BlockFinder(kind, tiles))


class FileWriter(ModelWriter):
    """Writer of ``model-<mix>.gguf``: see `ModelWriter`."""

    def __init__(
        self, mix: str, directory: Path, checkpoint: Checkpoint, grids: Mapping[str, LayerGrid]
    ) -> None:
        self._checkpoint = checkpoint
        self._config = config = checkpoint.config
        self._rope = rope_tensors(config)
        places = Places(mix, config, grids)
        self._places = {
            name: places.of(name, checkpoint.info(name))
            for name in checkpoint.names()
            if is_decoders(config, name)
        }
        self._given: set[str] = set()
        planned = planned_tensors(chain.from_iterable(self._places.values()), config)
        for name, values in self._rope.items():
            planned[name] = PlannedTensor(type_named("F32"), values.shape)
        self._warn_of_fallbacks(places.types)
        if left := len(checkpoint.names()) - len(self._places):
            log.warning("%d tensors that are not the decoder's are left out", left)
        path = directory / _file_name(mix)
        self._file = GGUFWriter(path, _metadata(checkpoint, mix), planned)
        self.planned_bytes = self._file.planned_bytes

    def _warn_of_fallbacks(self, types: Types) -> None:
        others = {
            place.stored: place
            for name, (place, *_) in self._places.items()
            if place.kind.name in BLOCK_TYPES and place.kind.name != types.of(name, 256)
        }
        if others:
            name, place = next(iter(others.items()))
            log.warning(
                "%d tensors have rows that are not a multiple of 256 (%s: K = %d) and get llama.cpp's "
                "types in blocks of 32",
                len(others),
                name,
                place.shape[-1],
            )

    def __enter__(self) -> FileWriter:
        self._file.__enter__()
        return self

    def add_layer(self, name: str, quantized: QuantizedWeight) -> int:
        """See `ModelWriter`."""
        weight, places = f"{name}.weight", self._places[f"{name}.weight"]
        if tiles := column_tiles(self._config, weight):
            quantized = in_file_columns(quantized, tiles)
        kind = places[0].kind.name
        if kind == MXFP4:
            rows = pack_mxfp4(quantized)
            for place in places:
                self._write(place, [rows if place.rows is None else rows[place.rows]])
        else:
            blocks = split_scales(quantized.scales, quantized.zeros, BLOCK_TYPES[kind].grid)
            for place in places:
                whole = BlockWeight(quantized.codes, blocks)
                self._write(
                    place, _packed(whole if place.rows is None else whole.rows(place.rows), kind)
                )
        self._given.add(weight)
        return sum(place.planned.size for place in places)

    def add(self, name: str, tensor: NDArray[Any]) -> None:
        """See `ModelWriter`."""
        places = self._places[name]
        parts: Iterable[NDArray[Any]]
        if len(places) > 1 and len(places[0].shape) == 3:
            parts = latent_parts(self._config, tensor)
        else:
            values = as_stored(self._config, name, tensor)
            if tiles := column_tiles(self._config, name):
                values = values[:, tiles.order(1)]
            parts = (values if place.rows is None else values[place.rows] for place in places)
        for place, part in zip(places, parts, strict=True):
            stored = np.ascontiguousarray(part, place.kind.dtype)
            self._write(place, [stored.reshape(-1).view(np.uint8)])
        self._given.add(name)

    def _write(self, place: Place, parts: Iterable[NDArray[np.uint8]]) -> None:
        begin = (place.expert or 0) * place.planned.size
        for part in parts:
            self._file.add(place.stored, part.ravel(), begin)
            begin += part.size

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
        """Write a tensor that no call passed: tables by round-to-nearest, others unchanged."""
        place, *_ = self._places[name]
        kind = place.kind.name
        if kind not in BLOCK_TYPES:
            self.add(name, self._checkpoint.tensor(name))
            return
        tiles = self._checkpoint.tiles(name, ROWS)
        self._write(place, (pack_blocks(nearest(tile, kind), kind) for tile in tiles))


def _packed(weight: BlockWeight, kind: str) -> Iterator[NDArray[np.uint8]]:
    """Pack a weight, `ROWS` rows at a time."""
    for first in range(0, len(weight.codes), ROWS):
        yield pack_blocks(weight.rows(slice(first, first + ROWS)), kind)


def nearest(weight: NDArray[Any], kind: str, importance: NDArray | None = None) -> BlockWeight:
    """Round a weight [M, K] to nearest on searched blocks of one of GGML's types."""
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
    """Return the file's metadata: copied from a GGUF source, else derived from the configuration."""
    own = {
        "general.file_type": encoded(file_type(mix)),
        "general.quantization_version": encoded(QUANTIZATION_VERSION),
    }
    if isinstance(checkpoint, GGUFCheckpoint):
        return checkpoint.metadata_bytes() | _without_further(checkpoint) | own
    made = model_metadata(checkpoint) | vocabulary_metadata(checkpoint)
    return {key: encoded(value) for key, value in made.items()} | own


_BY_BLOCK = ("attention.head_count_kv", "feed_forward_length")
"""Options that may have one number per block."""


def _without_further(checkpoint: GGUFCheckpoint) -> dict[str, bytes]:
    """Return corrected counts of blocks if layers that predict further tokens are left out."""
    if not checkpoint.dropped:
        return {}
    count, options = checkpoint.config.num_layers, checkpoint.options
    found: dict[str, Any] = {"block_count": count, FURTHER: 0}
    for key in _BY_BLOCK:
        if options.is_list(key):
            found[key] = options.integers(key)[:count].astype(np.int32)
    return {options.label(key): encoded(value) for key, value in found.items()}
