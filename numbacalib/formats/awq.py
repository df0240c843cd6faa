"""AWQ's GEMM format, which transformers, AutoAWQ, GPTQModel and vLLM load.

A quantized linear layer has, in place of ``weight`` [M, K], with G groups per row:

- ``qweight`` int32 [K, M / 8], unsigned 4-bit codes of 8 rows of the weight per word;
- ``qzeros`` int32 [G, M / 8], unsigned zeros in the same order;
- ``scales`` [G, M], float16 or bfloat16.

From the least significant bits on, a word has its rows in the order 0, 2, 4, 6, 1, 3, 5, 7
(https://github.com/casper-hansen/AutoAWQ, ``awq/utils/packing_utils.py``). Zeros of symmetric layers are 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.bit_packing import pack_bits, unpack_bits
from numbacalib.formats.format import GridRules, LayerGrid
from numbacalib.formats.grid_finders import ZerosFrom1
from numbacalib.formats.safetensors_format import (
    GridOf,
    Left,
    SafetensorsFormat,
    check_exceptions,
    exceptions,
    one_grid,
    require_integer_zeros,
    stored_floats,
    stored_matrix,
    stored_tensor,
    written_group_size,
)
from numbacalib.methods import QuantizedWeight
from numbacalib.models.fields import Fields

if TYPE_CHECKING:
    from numbacalib.models import Checkpoint

METHOD = "awq"
BITS = 4
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Row numbers, among 8 of the weight, of a word's 4-bit fields, from the least significant on."""

_HARMLESS = ("modules_to_not_convert", "meta", "lm_head", "desc_act", "do_fuse", "fuse_max_seq_len")


class Awq(SafetensorsFormat):
    """Format ``awq``: one grid for all layers."""

    name = METHOD
    methods = (METHOD,)
    rules = GridRules(
        bits=(BITS,),
        group_sizes=(32, 64, 128),
        scale_dtypes=("float16", "bfloat16"),
        row_multiple=8,
        channel_multiple=8,
    )
    finders = (ZerosFrom1(),)
    parts = ("qweight", "qzeros", "scales")

    def is_uniform(self, asked: Mapping[str, LayerGrid]) -> bool:
        """See `Format`."""
        del asked
        return True

    def configuration(self, grids: Mapping[str, LayerGrid], left: Left) -> dict[str, Any]:
        """See `SafetensorsFormat`."""
        grid = next(iter(grids.values()))
        config = {
            "quant_method": METHOD,
            "version": "gemm",
            "bits": grid.bits,
            "group_size": written_group_size(grid),
            "zero_point": True,
            "modules_to_not_convert": [*left.layers, *left.parts],
        }
        return {"quantization_config": config | exceptions(left)}

    def pack(self, quantized: QuantizedWeight) -> dict[str, NDArray[Any]]:
        """See `SafetensorsFormat`."""
        require_integer_zeros(quantized)
        if quantized.g_idx is not None:
            raise ValueError("g_idx: expected None, AWQ has no groups out of order")
        return {
            "qweight": pack_bits(_reordered(quantized.codes.T, ORDER), BITS),
            "qzeros": pack_bits(_reordered(quantized.zeros.T, ORDER), BITS),
            "scales": np.ascontiguousarray(quantized.scales.T),
        }

    def packed_bytes(self, shape: tuple[int, ...], grid: LayerGrid) -> int:
        """See `SafetensorsFormat`."""
        rows, channels = shape
        groups = channels // (grid.group_size or channels)
        return rows * (channels + groups) // 2 + rows * groups * grid.scale_dtype.itemsize

    def unpack(self, tensors: Mapping[str, NDArray[Any]], grid: LayerGrid) -> QuantizedWeight:
        """See `SafetensorsFormat`."""
        words = stored_tensor(tensors, "qweight", np.int32, (None, None))
        channels, rows = len(words), 8 * words.shape[1]
        size = grid.group_size or channels
        if not channels or not rows or channels % size:
            raise ValueError(
                f"qweight: expected codes in groups of {size}, got {list(words.shape)}"
            )
        groups = channels // size
        stored = stored_tensor(tensors, "qzeros", np.int32, (groups, words.shape[1]))
        scales = stored_floats(tensors, "scales", (groups, rows))
        natural = np.argsort(ORDER)
        codes, zeros = (
            np.ascontiguousarray(_reordered(unpack_bits(each, BITS, rows), natural).T)
            for each in (words, stored)
        )
        symmetric = bool((zeros == 1 << (BITS - 1)).all())
        return QuantizedWeight(codes, np.ascontiguousarray(scales.T), zeros, BITS, size, symmetric)

    def stored_shape(self, checkpoint: Checkpoint, layer: str, grid: LayerGrid) -> tuple[int, int]:
        """See `SafetensorsFormat`."""
        del grid
        channels, words = stored_matrix(checkpoint, f"{layer}.qweight")
        return 8 * words, channels

    def recognizes(self, checkpoint: Checkpoint) -> bool:
        """See `Format`."""
        config = checkpoint.hf_config().get("quantization_config")
        return isinstance(config, Mapping) and config.get("quant_method") == METHOD

    def grid_of(self, checkpoint: Checkpoint) -> GridOf:
        """See `SafetensorsFormat`."""
        config = Fields(checkpoint.hf_config()).object("quantization_config")
        config.choice("quant_method", (METHOD,))
        config.choice("version", ("gemm", "GEMM"), "gemm")
        config.choice("checkpoint_format", ("gemm",), "gemm")
        config.choice("backend", ("autoawq",), "autoawq")
        config.choice("zero_point", (True,), True)
        check_exceptions(config)
        return one_grid(config, (BITS,), False, _HARMLESS)


def _reordered(matrix: NDArray[np.uint8], order: Any) -> NDArray[np.uint8]:
    """Reorder each run of 8 columns."""
    rows, columns = matrix.shape
    return matrix.reshape(rows, columns // 8, 8)[:, :, order].reshape(rows, columns)
