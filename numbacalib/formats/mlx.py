"""MLX's affine format, which mlx-lm loads.

A quantized layer has, with G groups per row:

- ``weight`` uint32 [M, K * bits / 32], unsigned codes, a stream of bits along the row, from the least
  significant on;
- ``scales`` and ``biases`` [M, G], float16 or bfloat16: ``weight = scale * code + bias``.

Biases are real numbers: an asymmetric grid has real zeros, ``-bias / scale``, from rounded biases. A
symmetric one has ``bias = -2 ** (bits - 1) * scale``, which is exact. Scales may be negative. Layout as of
mlx 0.32 (https://ml-explore.github.io/mlx, ``mlx.core.quantize``), configuration as mlx-lm writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.bit_packing import WORD_BITS, pack_bits, unpack_bits
from numbacalib.formats.format import Format, GridRules, LayerGrid
from numbacalib.formats.grid_finders import StoredBiases, biases_of
from numbacalib.formats.safetensors_format import (
    GridOf,
    Left,
    SafetensorsFormat,
    stored_floats,
    stored_matrix,
    stored_tensor,
)
from numbacalib.methods import QuantizedWeight
from numbacalib.models.checkpoint import TensorInfo
from numbacalib.models.fields import Fields
from numbacalib.spec.small_floats import FP4

if TYPE_CHECKING:
    from numbacalib.models import Checkpoint
    from numbacalib.models.config import ModelConfig

KEY = "quantization"
MODE = "affine"
PREFIX = "mlx:"
"""Prefix of the names of formats of other modes."""


class MlxDirectory(SafetensorsFormat):
    """Properties that the formats of all modes share."""

    # mlx-lm joins quantized experts' layers only for these; for others it reads tensors of all experts
    mixtures = ("mixtral", "qwen2_moe")

    def of_model(self, config: ModelConfig) -> Format:
        """See `Format`; mlx-lm would transpose packed weights of files in [K, M], such as GPT-2's."""
        if config.architecture.transposed:
            raise ValueError(
                f"format: expected one whose clients load a quantized {config.model_type}, got {self.name}"
            )
        return super().of_model(config)

    def holds(self, layer: str) -> bool:
        """See `Format`; mlx-lm loads embeddings and heads too."""
        return super().holds(layer) or layer in ("lm_head", "model.embed_tokens")


def mode_of(checkpoint: Checkpoint) -> Any:
    """Return the mode that a checkpoint's configuration names; None if it is not in MLX's formats."""
    config = checkpoint.hf_config().get(KEY)
    return config.get("mode", MODE) if isinstance(config, Mapping) else config


class Mlx(MlxDirectory):
    """Format ``mlx``: each layer may have its own grid."""

    name = "mlx"
    rules = GridRules(
        bits=(2, 3, 4, 5, 6, 8),
        group_sizes=(32, 64, 128),
        whole_rows=False,
        scale_dtypes=("float16", "bfloat16"),
    )
    parts = ("weight", "scales", "biases")

    def grids(
        self, weights: Mapping[str, TensorInfo], asked: Mapping[str, LayerGrid]
    ) -> dict[str, LayerGrid]:
        """See `Format`; asymmetric grids have biases rounded as stored."""
        return {
            layer: grid if grid.symmetric else replace(grid, find=StoredBiases())
            for layer, grid in super().grids(weights, asked).items()
        }

    def configuration(self, grids: Mapping[str, LayerGrid], left: Left) -> dict[str, Any]:
        """See `SafetensorsFormat`; layers on another grid than the first one's are listed by name."""
        del left  # mlx-lm recognizes quantized layers by their tensors
        described = {layer: _described(grid) for layer, grid in grids.items()}
        first = next(iter(described.values()))
        others = {layer: own for layer, own in described.items() if own != first}
        return {KEY: first | others, "quantization_config": first | others}

    def pack(self, quantized: QuantizedWeight) -> dict[str, NDArray[Any]]:
        """See `SafetensorsFormat`."""
        if quantized.g_idx is not None:
            raise ValueError("g_idx: expected None, MLX has no groups out of order")
        return {
            "weight": pack_bits(quantized.codes, quantized.bits).view(np.uint32),
            "scales": quantized.scales,
            "biases": biases_of(quantized.scales, quantized.zeros),
        }

    def packed_bytes(self, shape: tuple[int, ...], grid: LayerGrid) -> int:
        """See `SafetensorsFormat`."""
        rows, channels = shape
        groups = channels // (grid.group_size or channels)
        return rows * channels * grid.bits // 8 + 2 * rows * groups * grid.scale_dtype.itemsize

    def unpack(self, tensors: Mapping[str, NDArray[Any]], grid: LayerGrid) -> QuantizedWeight:
        """See `SafetensorsFormat`; zeros become integers if all of a layer's are whole."""
        words = stored_tensor(tensors, "weight", np.uint32, (None, None))
        rows, channels = len(words), words.shape[1] * WORD_BITS // grid.bits
        size = grid.group_size or channels
        if not rows or not channels or words.shape[1] * WORD_BITS % grid.bits or channels % size:
            raise ValueError(
                f"weight: expected {grid.bits}-bit codes in groups of {size}, got {list(words.shape)}"
            )
        scales = stored_floats(tensors, "scales", (rows, channels // size))
        biases = stored_floats(tensors, "biases", scales.shape)
        if not (scales.astype(np.float32) != 0).all():
            raise ValueError("scales: expected numbers other than 0, got 0")
        zeros: NDArray[Any] = -biases.astype(np.float32) / scales.astype(np.float32)
        whole = zeros.clip(0, (1 << grid.bits) - 1).round().astype(np.uint8)
        if (whole == zeros).all():
            zeros = whole
        return QuantizedWeight(
            unpack_bits(words.view(np.int32), grid.bits, channels),
            scales,
            zeros,
            grid.bits,
            size,
            bool((zeros == 1 << (grid.bits - 1)).all()),
        )

    def stored_shape(self, checkpoint: Checkpoint, layer: str, grid: LayerGrid) -> tuple[int, int]:
        """See `SafetensorsFormat`."""
        rows, words = stored_matrix(checkpoint, f"{layer}.weight")
        return rows, words * WORD_BITS // grid.bits

    def recognizes(self, checkpoint: Checkpoint) -> bool:
        """See `Format`."""
        mode = mode_of(checkpoint)
        return mode is not None and mode not in tuple(FP4)  # a file's mode may be unhashable

    def grid_of(self, checkpoint: Checkpoint) -> GridOf:
        """See `SafetensorsFormat`."""
        config = Fields(checkpoint.hf_config()).object(KEY)
        most = self._grid(config)
        named = {key: config.object(key) for key in config if "." in key or key == "lm_head"}
        own = {layer: self._grid(fields) for layer, fields in named.items()}
        config.refuse_unread()
        for fields in named.values():
            fields.refuse_unread()
        return lambda layer: own.get(layer, most)

    def _grid(self, fields: Fields) -> LayerGrid:
        """Read bits and group size, of all layers or of one."""
        fields.choice("mode", (MODE,), MODE)
        return LayerGrid(
            fields.choice("bits", self.rules.bits),
            fields.choice("group_size", self.rules.group_sizes or ()),
            False,
            np.dtype(np.float16),
        )


def _described(grid: LayerGrid) -> dict[str, Any]:
    return {"group_size": grid.group_size, "bits": grid.bits, "mode": MODE}
