"""GGUF files of whole models, which llama.cpp and what stands on it load."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.format import Format, GridRules, LayerGrid, ModelWriter, StoredLayers
from numbacalib.formats.gguf_blocks import BLOCK_TYPES, BlockWeight, pack_blocks, unpack_blocks
from numbacalib.formats.gguf_metadata import (
    QUANTIZATION_VERSION,
    architecture_of,
    model_metadata,
    rope_divisors,
)
from numbacalib.formats.gguf_mixes import (
    MIXES,
    Layers,
    file_type,
    tensor_type_of,
)
from numbacalib.formats.gguf_scales import BlockFinder, split_scales
from numbacalib.formats.gguf_vocabulary import vocabulary_metadata
from numbacalib.formats.gguf_writer import GGUFWriter, PlannedTensor, encoded
from numbacalib.methods import QuantizedWeight, rtn
from numbacalib.methods.block_scales import block_scales
from numbacalib.models.checkpoint import TensorInfo
from numbacalib.models.gguf import GGUFCheckpoint, permuted
from numbacalib.models.gguf_config import ROPE_DIVISORS
from numbacalib.models.gguf_names import gguf_name
from numbacalib.models.gguf_types import type_named

if TYPE_CHECKING:
    from numbacalib.models import Checkpoint

log = logging.getLogger("numbacalib")

ROWS = 4096
"""Rows of embeddings and of the head that are quantized together."""
PREFIX = "gguf:"


class GGUF(Format):
    """One of llama.cpp's mixes of types: it says the type of each tensor, and so bits and groups."""

    rules = GridRules(bits=(2, 3, 4, 5, 6, 8), channel_multiple=32)

    def __init__(self, mix: str) -> None:
        self.mix, self.name = mix, f"{PREFIX}{mix}"

    def opened_at(self, directory: Path) -> Path:
        """See `Format`."""
        return directory / _file_name(self.mix)

    def check(self, asked: LayerGrid) -> None:
        """See `Format`; bits and groups are the mix's, whatever is asked for."""

    def grids(
        self, weights: Mapping[str, TensorInfo], asked: Mapping[str, LayerGrid]
    ) -> dict[str, LayerGrid]:
        """See `Format`."""
        del asked
        for layer, info in weights.items():
            self.rules.check_shape(layer, info.shape)
        layers = _layers(weights, tied=False)
        kinds = {
            layer: tensor_type_of(self.mix, gguf_name(f"{layer}.weight"), info.shape[1], layers)
            for layer, info in weights.items()
        }
        return {layer: block_grid(kind) for layer, kind in kinds.items()}

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


GGUF_FORMATS = tuple(map(GGUF, MIXES))


def _file_name(mix: str) -> str:
    return f"model-{mix}.gguf"


def block_grid(kind: str) -> LayerGrid:
    """Return the grid of one of GGML's types."""
    grid = BLOCK_TYPES[kind].grid
    dtype = np.dtype(np.float32)
    return LayerGrid(grid.bits, grid.group_size, not grid.minima, dtype, BlockFinder(kind))


def _layers(weights: Mapping[str, TensorInfo], *, tied: bool) -> Layers:
    """Say what the mixes look at, from the layers of whole blocks."""
    first = "model.layers.0.self_attn"
    count = sum(name.endswith("self_attn.q_proj") for name in weights)
    heads = weights[f"{first}.q_proj"].shape[0] // weights[f"{first}.k_proj"].shape[0]
    return Layers(count, heads, tied)


class FileWriter(ModelWriter):
    """Writes ``model-<mix>.gguf``: see `ModelWriter`."""

    def __init__(
        self, mix: str, directory: Path, checkpoint: Checkpoint, grids: Mapping[str, LayerGrid]
    ) -> None:
        self._checkpoint = checkpoint
        config = checkpoint.config
        self._heads = {"q": config.num_heads, "k": config.num_kv_heads}
        self._permutes = architecture_of(config) == "llama"
        self._divisors = rope_divisors(config)
        weights = {layer: checkpoint.info(f"{layer}.weight") for layer in grids}
        self._mix = mix, _layers(weights, tied=config.tie_word_embeddings)
        self._names = {gguf_name(name): name for name in checkpoint.names()}
        planned = {
            name: self._planned(name, checkpoint.info(source).shape)
            for name, source in self._names.items()
        }
        if self._divisors is not None:
            planned[ROPE_DIVISORS] = PlannedTensor(type_named("F32"), self._divisors.shape)
        self._warn_of_fallbacks(planned)
        path = directory / _file_name(mix)
        self._file = GGUFWriter(path, _metadata(checkpoint, mix), planned)
        self._tensors = planned
        self.planned_bytes = self._file.planned_bytes

    def _planned(self, name: str, shape: tuple[int, ...]) -> PlannedTensor:
        if len(shape) == 1:
            return PlannedTensor(type_named("F32"), shape)
        mix, layers = self._mix
        return PlannedTensor(type_named(tensor_type_of(mix, name, shape[1], layers)), shape)

    def _warn_of_fallbacks(self, planned: Mapping[str, PlannedTensor]) -> None:
        mix, layers = self._mix
        others = [
            (name, tensor)
            for name, tensor in planned.items()
            if len(tensor.shape) == 2 and tensor.kind.name != tensor_type_of(mix, name, 256, layers)
        ]
        if others:
            name, tensor = others[0]
            log.warning(
                "%d tensors have rows that are no multiple of 256 (%s: K = %d) and get types in blocks of "
                "32, as llama.cpp gives them",
                len(others),
                name,
                tensor.shape[1],
            )

    def __enter__(self) -> FileWriter:
        self._file.__enter__()
        return self

    def add_layer(self, name: str, quantized: QuantizedWeight) -> int:
        """See `ModelWriter`."""
        stored = gguf_name(f"{name}.weight")
        grid = BLOCK_TYPES[self._tensors[stored].kind.name].grid
        blocks = split_scales(quantized.scales, quantized.zeros, grid)
        weight = BlockWeight(quantized.codes, blocks)
        order = self._row_order(f"{name}.weight", len(weight.codes))
        if order is not None:
            weight = weight.rows(order)
        for first in range(0, len(weight.codes), ROWS):
            part = weight.rows(slice(first, first + ROWS))
            self._file.add(stored, pack_blocks(part, self._tensors[stored].kind.name).ravel())
        return self._tensors[stored].size

    def add(self, name: str, tensor: NDArray[Any]) -> None:
        """See `ModelWriter`."""
        order = self._row_order(name, len(tensor))
        values = tensor if order is None else tensor[order]
        self._file.add(gguf_name(name), values.astype("<f4").view(np.uint8))

    def _row_order(self, name: str, rows: int) -> NDArray[np.int64] | None:
        """Order of the rows of queries and keys where GGUF has another one."""
        projection = name.rpartition("_proj.")[0][-1:]
        if not self._permutes or ".self_attn." not in name or projection not in self._heads:
            return None
        return permuted(np.arange(rows), self._heads[projection])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            for name, source in self._names.items():
                if name not in self._file:
                    self._copy(name, source)
            if self._divisors is not None:
                self._file.add(ROPE_DIVISORS, self._divisors.astype("<f4").view(np.uint8))
        self._file.__exit__(kind, error, traceback)

    def _copy(self, name: str, source: str) -> None:
        """Write what no call gave: vectors as they are, embeddings and head by round-to-nearest."""
        if len(self._tensors[name].shape) == 1:
            self.add(source, self._checkpoint.tensor(source))
            return
        kind = self._tensors[name].kind.name
        for tile in self._checkpoint.tiles(source, ROWS):
            self._file.add(name, pack_blocks(nearest(tile, kind), kind).ravel())


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


class BlockLayers(StoredLayers):
    """The linear layers of a GGUF file that are in blocks which `BLOCK_TYPES` has."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        if not isinstance(checkpoint, GGUFCheckpoint):
            raise ValueError(f"{checkpoint.path}: expected a GGUF file")
        self._checkpoint = checkpoint
        self._kinds = {
            name.removesuffix(".weight"): kind
            for name in checkpoint.names()
            if (kind := checkpoint.kind(name).name) in BLOCK_TYPES
        }

    def shape(self, layer: str) -> tuple[int, int]:
        """See `StoredLayers`."""
        rows, channels = self._checkpoint.info(f"{layer}.weight").shape
        return rows, channels

    def tensors(self, layer: str) -> tuple[str, ...]:
        """See `StoredLayers`."""
        return (f"{layer}.weight",)

    def __getitem__(self, layer: str) -> QuantizedWeight:
        kind = self._kinds[layer]
        codes, stored = unpack_blocks(self._checkpoint.blocks(f"{layer}.weight"), kind)
        grid = BLOCK_TYPES[kind].grid
        scales, zeros = stored.grids(grid)
        if not grid.minima:
            zeros = np.full(scales.shape, grid.half, np.uint8)
        shape = grid.bits, grid.group_size, not grid.minima
        return QuantizedWeight(codes, scales, zeros, *shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)
