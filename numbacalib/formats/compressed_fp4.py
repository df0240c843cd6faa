"""The compressed-tensors `nvfp4-pack-quantized` and `mxfp4-pack-quantized` formats, weight-only.

A quantized linear layer has, in place of ``weight`` [M, K], with G groups per row:

- ``weight_packed`` uint8 [M, K / 2], codes of E2M1, the first of two in the lower bits;
- ``weight_scale`` [M, G]: float8_e4m3fn with NVFP4, uint8 exponents of two plus 127 with MXFP4;
- ``weight_global_scale`` float32 [1], with NVFP4: the divisor of the scales.

Layout as of compressed-tensors 0.20 (https://github.com/vllm-project/compressed-tensors,
``compressors/nvfp4``, ``compressors/mxfp4``), configuration as in its presets NVFP4A16 and MXFP4A16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.compressed_tensors import ignored, is_expert
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
from numbacalib.formats.packed_schemes import METHOD, PackedScheme, read_schemes
from numbacalib.formats.safetensors_format import (
    GridOf,
    Left,
    SafetensorsFormat,
    stored_matrix,
    stored_tensor,
)
from numbacalib.methods import QuantizedWeight
from numbacalib.models.checkpoint import TensorInfo
from numbacalib.models.fields import Fields
from numbacalib.runtime.extras import extra
from numbacalib.spec.small_floats import BITS, FP4

with extra("models"):
    import ml_dtypes

if TYPE_CHECKING:
    from numbacalib.models import Checkpoint

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
_STRATEGIES = {"nvfp4": "tensor_group", "mxfp4": "group"}
_SCALE_DTYPES = {"nvfp4": "torch.float8_e4m3fn", "mxfp4": "torch.uint8"}


class CompressedFp4(SafetensorsFormat):
    """Format ``nvfp4`` or ``mxfp4``, with fixed bits and groups.

    For experts with NVFP4, transformers 5.24 with compressed-tensors 0.20 reports no error but computes
    wrong results.
    """

    methods = (METHOD,)
    own_grid = True

    def __init__(self, kind: str) -> None:
        self.name = kind
        self.rules = fp4_rules(kind)
        self._form = f"{kind}-pack-quantized"
        self._has_global = FP4[kind].global_scale
        self._finder = Fp4Finder(kind, shared=self._has_global)
        self.parts = (
            "weight_packed",
            "weight_scale",
            *(("weight_global_scale",) if self._has_global else ()),
        )

    def holds(self, layer: str) -> bool:
        """See `Format`; heads too."""
        return super().holds(layer) or layer == "lm_head"

    def check(self, asked: LayerGrid) -> None:
        """See `Format`."""
        check_fp4(asked)

    def grids(
        self, weights: Mapping[str, TensorInfo], asked: Mapping[str, LayerGrid]
    ) -> dict[str, LayerGrid]:
        """See `Format`."""
        experts = [layer for layer in asked if self._has_global and is_expert(layer)]
        if experts:
            raise ValueError(
                f"{experts[0]}: expected no experts, whose global scales transformers 5.24 misreads: use "
                "mxfp4"
            )
        return fp4_grids(self.rules, weights, asked, self._finder)

    def configuration(self, grids: Mapping[str, LayerGrid], left: Left) -> dict[str, Any]:
        """See `SafetensorsFormat`."""
        del grids  # all are on the same one
        weights = {
            "num_bits": BITS,
            "type": "float",
            "symmetric": True,
            "strategy": _STRATEGIES[self.name],
            "group_size": FP4[self.name].group_size,
            "dynamic": False,
            "scale_dtype": _SCALE_DTYPES[self.name],
        }
        group = {"targets": ["Linear"], "weights": weights, "format": self._form}
        config = {
            "quant_method": METHOD,
            "format": self._form,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": ignored(left),
            "kv_cache_scheme": None,
            # otherwise transformers 5.24 unpacks to bfloat16 in the first pass, and fails in other dtypes
            "dequantize": True,
        }
        return {"quantization_config": config}

    def pack(self, quantized: QuantizedWeight) -> dict[str, NDArray[Any]]:
        """See `SafetensorsFormat`."""
        tensors: dict[str, NDArray[Any]] = {
            "weight_packed": pack_codes(quantized),
            "weight_scale": scale_codes(quantized, self.name),
        }
        if self._has_global:
            number = 1 if quantized.global_scale is None else quantized.global_scale
            tensors["weight_scale"] = tensors["weight_scale"].view(E4M3)
            tensors["weight_global_scale"] = np.array([number], np.float32)
        return tensors

    def packed_bytes(self, shape: tuple[int, ...], grid: LayerGrid) -> int:
        """See `SafetensorsFormat`."""
        del grid
        rows, channels = shape
        per_row = channels // 2 + channels // FP4[self.name].group_size
        return rows * per_row + (4 if self._has_global else 0)

    def unpack(self, tensors: Mapping[str, NDArray[Any]], grid: LayerGrid) -> QuantizedWeight:
        """See `SafetensorsFormat`."""
        del grid
        packed = stored_tensor(tensors, "weight_packed", np.uint8, (None, None))
        rows, channels = len(packed), 2 * packed.shape[1]
        size = FP4[self.name].group_size
        if not rows or not channels or channels % size:
            raise ValueError(
                f"weight_packed: expected rows of groups of {size}, got {list(packed.shape)}"
            )
        shape = rows, channels // size
        divisor = None
        if self._has_global:
            scales = stored_tensor(tensors, "weight_scale", None, shape)
            if scales.dtype != E4M3:
                raise ValueError(f"weight_scale: expected {E4M3}, got {scales.dtype}")
            numbers = stored_tensor(tensors, "weight_global_scale", np.float32, (1,))
            divisor = float(numbers[0])
            if not 0 < divisor < np.inf:
                raise ValueError(
                    f"weight_global_scale: expected a finite number above 0, got {divisor}"
                )
            scales = scales.view(np.uint8)
        else:
            scales = stored_tensor(tensors, "weight_scale", np.uint8, shape)
        try:
            return fp4_weight(unpack_codes(packed), scales, self.name, divisor)
        except ValueError as error:
            raise ValueError(f"weight_scale: {error}") from None

    def stored_shape(self, checkpoint: Checkpoint, layer: str, grid: LayerGrid) -> tuple[int, int]:
        """See `SafetensorsFormat`."""
        del grid
        rows, bytes_of_row = stored_matrix(checkpoint, f"{layer}.weight_packed")
        return rows, 2 * bytes_of_row

    def recognizes(self, checkpoint: Checkpoint) -> bool:
        """See `Format`."""
        config = checkpoint.hf_config().get("quantization_config")
        given = config if isinstance(config, Mapping) else {}
        return given.get("quant_method") == METHOD and given.get("format") == self._form

    def grid_of(self, checkpoint: Checkpoint) -> GridOf:
        """See `SafetensorsFormat`."""
        config = Fields(checkpoint.hf_config()).object("quantization_config")
        schemes = read_schemes(config, self._form, self._scheme)

        def grid_of(layer: str) -> LayerGrid:
            schemes.of(layer)  # raises an error if there is none
            return fp4_grid(self._finder)

        return grid_of

    def _scheme(self, weights: Fields) -> PackedScheme:
        """Read a config group's weights, and refuse any but the format's own."""
        weights.choice("type", ("float",))
        weights.nothing("dynamic", "block_structure")
        weights.choice("strategy", (_STRATEGIES[self.name],))
        weights.choice("symmetric", (True,), True)
        bits = weights.choice("num_bits", (BITS,))
        size = weights.choice("group_size", (FP4[self.name].group_size,))
        return PackedScheme(bits, True, size)
