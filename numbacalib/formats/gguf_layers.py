"""Quantized linear layers read from GGUF files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.format import StoredLayers
from numbacalib.formats.gguf_blocks import BLOCK_TYPES, unpack_blocks
from numbacalib.formats.gguf_mxfp4 import MXFP4, unpack_mxfp4
from numbacalib.formats.gguf_scales import in_our_columns
from numbacalib.methods import QuantizedWeight
from numbacalib.models.gguf import GGUFCheckpoint
from numbacalib.models.gguf_layouts import column_tiles

if TYPE_CHECKING:
    from numbacalib.models import Checkpoint


class BlockLayers(StoredLayers):
    """Linear layers of a GGUF file in blocks of `BLOCK_TYPES` or MXFP4."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        if not isinstance(checkpoint, GGUFCheckpoint):
            raise ValueError(f"{checkpoint.path}: expected a GGUF file")
        self._checkpoint = checkpoint
        self._kinds = {
            name.removesuffix(".weight"): kind
            for name in checkpoint.names()
            if (kind := checkpoint.kind(name).name) in (*BLOCK_TYPES, MXFP4)
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
        blocks = self._checkpoint.blocks(f"{layer}.weight")
        weight = unpack_mxfp4(blocks) if kind == MXFP4 else _unpacked(blocks, kind)
        tiles = column_tiles(self._checkpoint.config, f"{layer}.weight")
        return weight if tiles is None else in_our_columns(weight, tiles)

    def __contains__(self, layer: object) -> bool:
        return layer in self._kinds

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)


def _unpacked(blocks: NDArray[np.uint8], kind: str) -> QuantizedWeight:
    codes, stored = unpack_blocks(blocks, kind)
    grid = BLOCK_TYPES[kind].grid
    scales, zeros = stored.grids(grid)
    if not grid.minima:
        zeros = np.full(scales.shape, grid.half, np.uint8)
    return QuantizedWeight(codes, scales, zeros, grid.bits, grid.group_size, not grid.minima)
