"""GPTQ's own format, versions 1 and 2, which transformers, GPTQModel and vLLM load.

A quantized linear layer has, in place of ``weight`` [M, K], with G groups:

- ``qweight`` int32 [K * bits / 32, M], unsigned codes, a stream of bits along K;
- ``qzeros`` int32 [G, M * bits / 32], unsigned zeros, a stream of bits along M. Version 1 stores zeros
  minus 1, and so has no zero of 0; version 2 stores them unchanged;
- ``scales`` [G, M], float16 or bfloat16;
- ``g_idx`` int32 [K], the group of each channel.

Streams begin at the least significant bit, so that 3-bit codes straddle words. Layout and configuration
are those of AutoGPTQ and GPTQModel (https://github.com/ModelCloud/GPTQModel).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.bit_packing import WORD_BITS, pack_bits, unpack_bits
from numbacalib.formats.format import GridRules, LayerGrid
from numbacalib.formats.grid_finders import ZerosFrom1
from numbacalib.formats.safetensors_format import (
    GridOf,
    Left,
    SafetensorsFormat,
    check_exceptions,
    exceptions,
    one_grid,
    read_g_idx,
    require_integer_zeros,
    stored_floats,
    stored_matrix,
    stored_tensor,
    written_group_size,
)
from numbacalib.methods import QuantizedWeight
from numbacalib.models.checkpoint import TensorInfo
from numbacalib.models.fields import Fields

if TYPE_CHECKING:
    from numbacalib.models import Checkpoint

METHOD = "gptq"

# Keys on how the codes were found and by which program: they do not affect the stored weights.
_HARMLESS = (
    "damp_percent",
    "damp_auto_increment",
    "static_groups",
    "true_sequential",
    "model_name_or_path",
    "model_file_base_name",
    "meta",
    "mse",
    "dataset",
    "desc_act",
    "lm_head",
    "tokenizer",
    "cache_block_outputs",
    "use_exllama",
    "use_cuda_fp16",
    "model_seqlen",
    "block_name_to_quantize",
    "module_name_preceding_first_block",
    "batch_size",
    "pad_token_id",
    "exllama_config",
    "max_input_length",
    "hyb_act",
)


class Gptq(SafetensorsFormat):
    """Format ``gptq`` or ``gptq_v2``: one grid for all layers.

    Parameters
    ----------
    version : int
        1 or 2.
    """

    methods = (METHOD,)
    rules = GridRules(
        bits=(2, 3, 4, 8),
        group_sizes=(16, 32, 64, 128, 256, 512, 1024),
        scale_dtypes=("float16", "bfloat16"),
        g_idx=True,
        row_multiple=32,
        channel_multiple=32,
    )
    finders = (ZerosFrom1(),)
    parts = ("qweight", "qzeros", "scales", "g_idx")

    def __init__(self, version: int) -> None:
        self.name = "gptq" if version == 1 else "gptq_v2"
        self._least_zero = 1 if version == 1 else 0
        """Least zero that can be stored, which is stored as 0."""

    def check(self, asked: LayerGrid) -> None:
        """See `Format`."""
        super().check(asked)
        if self._least_zero and asked.g_idx and not asked.symmetric:
            raise ValueError(
                "act_order: expected static_groups with 'desc' on the asymmetric grid of gptq, whose zeros "
                "begin at 1: use static_groups, the symmetric grid or gptq_v2"
            )

    def holds(self, layer: str) -> bool:
        """See `Format`; heads too."""
        return super().holds(layer) or layer == "lm_head"

    def is_uniform(self, asked: Mapping[str, LayerGrid]) -> bool:
        """See `Format`."""
        del asked
        return True

    def grids(
        self, weights: Mapping[str, TensorInfo], asked: Mapping[str, LayerGrid]
    ) -> dict[str, LayerGrid]:
        """See `Format`; if zeros begin at 1, asymmetric grids are searched accordingly."""
        return {
            layer: grid
            if grid.symmetric or not self._least_zero
            else replace(grid, find=ZerosFrom1())
            for layer, grid in super().grids(weights, asked).items()
        }

    def configuration(self, grids: Mapping[str, LayerGrid], left: Left) -> dict[str, Any]:
        """See `SafetensorsFormat`."""
        grid = next(iter(grids.values()))
        config = {
            "quant_method": METHOD,
            "checkpoint_format": self.name,
            "bits": grid.bits,
            "group_size": written_group_size(grid),
            "desc_act": grid.g_idx,
            "sym": grid.symmetric,
            "lm_head": "lm_head" in grids,
            "pack_dtype": "int32",
        }
        return {"quantization_config": config | exceptions(left)}

    def files(self, configuration: Mapping[str, Any]) -> dict[str, Any]:
        """See `SafetensorsFormat`: a second copy of the configuration, for AutoGPTQ and GPTQModel."""
        return {"quantize_config.json": configuration["quantization_config"]}

    def pack(self, quantized: QuantizedWeight) -> dict[str, NDArray[Any]]:
        """See `SafetensorsFormat`."""
        require_integer_zeros(quantized)
        bits, least = quantized.bits, self._least_zero
        if quantized.zeros.min() < least:
            raise ValueError(f"zeros: expected at least {least} in {self.name}, got 0")
        return {
            "qweight": np.ascontiguousarray(pack_bits(quantized.codes, bits).T),
            "qzeros": pack_bits((quantized.zeros - np.uint8(least)).T, bits),
            "scales": np.ascontiguousarray(quantized.scales.T),
            "g_idx": quantized.group_of.astype(np.int32),
        }

    def packed_bytes(self, shape: tuple[int, ...], grid: LayerGrid) -> int:
        """See `SafetensorsFormat`."""
        rows, channels = shape
        groups = channels // (grid.group_size or channels)
        codes = rows * (channels + groups) * grid.bits // 8
        return codes + rows * groups * grid.scale_dtype.itemsize + 4 * channels

    def unpack(self, tensors: Mapping[str, NDArray[Any]], grid: LayerGrid) -> QuantizedWeight:
        """See `SafetensorsFormat`; without a `g_idx` groups are runs of channels."""
        words = stored_tensor(tensors, "qweight", np.int32, (None, None))
        channels, rows = len(words) * WORD_BITS // grid.bits, words.shape[1]
        size = grid.group_size or channels
        if channels < 1 or rows < 1 or channels * grid.bits % WORD_BITS or channels % size:
            raise ValueError(
                f"qweight: expected {grid.bits}-bit codes in groups of {size}, got {list(words.shape)}"
            )
        groups, width = channels // size, -(-rows * grid.bits // WORD_BITS)
        stored = stored_tensor(tensors, "qzeros", np.int32, (groups, width))
        scales = stored_floats(tensors, "scales", (groups, rows))
        zeros = unpack_bits(stored, grid.bits, rows).T
        highest = (1 << grid.bits) - 1
        if self._least_zero and zeros.max() == highest:
            raise ValueError(
                f"qzeros: expected zeros less 1 in version 1, got {highest}, which some runtimes read as "
                f"{highest + 1} and others as 0"
            )
        zeros = zeros + np.uint8(self._least_zero)
        symmetric = grid.symmetric and bool((zeros == 1 << (grid.bits - 1)).all())
        g_idx = None
        if "g_idx" in tensors:
            g_idx = read_g_idx(tensors, "g_idx", channels, groups)
            if (g_idx == np.arange(channels) // size).all():
                g_idx = None
        return QuantizedWeight(
            unpack_bits(words.T, grid.bits, channels),
            np.ascontiguousarray(scales.T),
            np.ascontiguousarray(zeros),
            grid.bits,
            size,
            symmetric,
            g_idx,
        )

    def stored_shape(self, checkpoint: Checkpoint, layer: str, grid: LayerGrid) -> tuple[int, int]:
        """See `SafetensorsFormat`."""
        words, rows = stored_matrix(checkpoint, f"{layer}.qweight")
        return rows, words * WORD_BITS // grid.bits

    def recognizes(self, checkpoint: Checkpoint) -> bool:
        """See `Format`; a configuration without a version is version 1."""
        config = checkpoint.hf_config().get("quantization_config")
        if not isinstance(config, Mapping) or config.get("quant_method") != METHOD:
            return False
        is_second = config.get("checkpoint_format") == "gptq_v2"
        return is_second == (self._least_zero == 0)

    def grid_of(self, checkpoint: Checkpoint) -> GridOf:
        """See `SafetensorsFormat`."""
        config = Fields(checkpoint.hf_config()).object("quantization_config")
        config.choice("quant_method", (METHOD,))
        config.choice("checkpoint_format", (self.name,), self.name)
        config.choice("format", (self.name,), self.name)
        config.choice("pack_dtype", ("int32",), "int32")
        config.nothing("adapter", "is_marlin_format")
        check_exceptions(config)
        return one_grid(config, self.rules.bits, config.flag("sym", True), _HARMLESS)
