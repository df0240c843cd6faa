"""MLX's modes mxfp4 and nvfp4, which mlx-lm loads.

A quantized layer has ``weight`` uint32 [M, K / 8], codes of E2M1 from the least significant bits on, and
``scales`` uint8 [M, G], codes of E8M0 or of E4M3. Layers have no global scale. Layout as of mlx 0.32
(https://ml-explore.github.io/mlx, ``mlx.core.quantize``), configuration as mlx-lm writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.format import LayerGrid
from numbacalib.formats.fp4 import (
    Fp4Finder,
    check_fp4,
    fp4_grid,
    fp4_grids,
    fp4_rules,
    fp4_weight,
    pack_codes,
    scale_codes,
    unpack_codes,
)
from numbacalib.formats.mlx import KEY, PREFIX, MlxDirectory, mode_of
from numbacalib.formats.safetensors_format import GridOf, Left, stored_matrix, stored_tensor
from numbacalib.methods import QuantizedWeight
from numbacalib.models.checkpoint import TensorInfo
from numbacalib.models.fields import Fields
from numbacalib.spec.small_floats import BITS, FP4

if TYPE_CHECKING:
    from numbacalib.models import Checkpoint

_PER_WORD = 8
"""Codes per word."""


class MlxFp4(MlxDirectory):
    """Format of one of the two modes, such as ``mlx:mxfp4``, with fixed bits and groups."""

    parts = ("weight", "scales")
    own_grid = True

    def __init__(self, kind: str) -> None:
        self.name, self._mode = f"{PREFIX}{kind}", kind
        self.rules = fp4_rules(kind)
        self._finder = Fp4Finder(kind)

    def check(self, asked: LayerGrid) -> None:
        """See `Format`."""
        check_fp4(asked)

    def grids(
        self, weights: Mapping[str, TensorInfo], asked: Mapping[str, LayerGrid]
    ) -> dict[str, LayerGrid]:
        """See `Format`."""
        return fp4_grids(self.rules, weights, asked, self._finder)

    def configuration(self, grids: Mapping[str, LayerGrid], left: Left) -> dict[str, Any]:
        """See `SafetensorsFormat`."""
        del (
            grids,
            left,
        )  # all are on one grid, and mlx-lm recognizes quantized layers by their tensors
        own = {"group_size": FP4[self._mode].group_size, "bits": BITS, "mode": self._mode}
        return {KEY: own, "quantization_config": own}

    def pack(self, quantized: QuantizedWeight) -> dict[str, NDArray[Any]]:
        """See `SafetensorsFormat`."""
        if quantized.global_scale not in (None, 1):
            raise ValueError(
                f"global_scale: expected 1, MLX stores none, got {quantized.global_scale:g}"
            )
        return {
            "weight": pack_codes(quantized).view(np.uint32),
            "scales": scale_codes(quantized, self._mode),
        }

    def packed_bytes(self, shape: tuple[int, ...], grid: LayerGrid) -> int:
        """See `SafetensorsFormat`."""
        del grid
        rows, channels = shape
        return rows * (channels // 2 + channels // FP4[self._mode].group_size)

    def unpack(self, tensors: Mapping[str, NDArray[Any]], grid: LayerGrid) -> QuantizedWeight:
        """See `SafetensorsFormat`."""
        del grid
        words = stored_tensor(tensors, "weight", np.uint32, (None, None))
        size = FP4[self._mode].group_size
        rows, channels = len(words), _PER_WORD * words.shape[1]
        if not rows or not channels or channels % size:
            raise ValueError(f"weight: expected rows of groups of {size}, got {list(words.shape)}")
        scales = stored_tensor(tensors, "scales", np.uint8, (rows, channels // size))
        try:
            return fp4_weight(unpack_codes(words.view(np.uint8)), scales, self._mode, None)
        except ValueError as error:
            raise ValueError(f"scales: {error}") from None

    def stored_shape(self, checkpoint: Checkpoint, layer: str, grid: LayerGrid) -> tuple[int, int]:
        """See `SafetensorsFormat`."""
        del grid
        rows, words = stored_matrix(checkpoint, f"{layer}.weight")
        return rows, _PER_WORD * words

    def recognizes(self, checkpoint: Checkpoint) -> bool:
        """See `Format`."""
        return mode_of(checkpoint) == self._mode

    def grid_of(self, checkpoint: Checkpoint) -> GridOf:
        """See `SafetensorsFormat`."""
        config = Fields(checkpoint.hf_config()).object(KEY)
        config.choice("mode", (self._mode,))
        config.choice("bits", (BITS,))
        config.choice("group_size", (FP4[self._mode].group_size,))
        config.refuse_unread()
        return lambda layer: fp4_grid(self._finder)
