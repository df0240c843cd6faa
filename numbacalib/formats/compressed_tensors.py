"""The compressed-tensors `pack-quantized` format, which transformers and vLLM load.

A quantized linear layer has, in place of ``weight`` [M, K], with G groups per row:

- ``weight_packed`` int32 [M, ceil(K * bits / 32)], unsigned codes, packed along the row;
- ``weight_scale`` [M, G], in the dtype of the model;
- ``weight_shape`` int64 [2], M and K;
- ``weight_zero_point`` int32 [ceil(M * bits / 32), G], unsigned, packed along the column; only on the
  asymmetric grid. On the symmetric one the zero point is ``2 ** (bits - 1)``.

The layout is that of compressed-tensors 0.20 (https://github.com/vllm-project/compressed-tensors,
pull requests 715 and 732), which packs 3, 5, 6 and 7 bits without gaps. Earlier releases left gaps or
refused these; 2, 4 and 8 bits are the same in all. Groups are runs of channels: its maintainers have
removed ``weight_g_idx``, so it is read here but not written. Release 0.20 fails on 4-bit zero points of a
layer with several groups and at most 8 rows (one word along the column), so such a layer is not written
either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.bit_packing import pack_bits, unpack_bits, word_count
from numbacalib.formats.format import GridRules, LayerGrid
from numbacalib.formats.grid_finders import ZerosFrom1
from numbacalib.formats.packed_schemes import FORMAT, METHOD, PackedSchemes, read_schemes
from numbacalib.formats.safetensors_format import (
    GridOf,
    Left,
    SafetensorsFormat,
    read_g_idx,
    require_integer_zeros,
    stored_floats,
    stored_tensor,
)
from numbacalib.formats.target_pattern import TargetPattern
from numbacalib.methods.quantized_weight import QuantizedWeight
from numbacalib.models.checkpoint import TensorInfo
from numbacalib.models.fields import Fields

if TYPE_CHECKING:
    from numbacalib.models import Checkpoint


OTHERS = "nvfp4-pack-quantized", "mxfp4-pack-quantized"
"""Formats of compressed-tensors that are separate formats here."""
EXPERT = r".*\.experts\.\d+\..*"
"""Pattern of the names of experts' linear layers, for the target of a config group."""
_EXPERT = TargetPattern(EXPERT)


def is_expert(layer: str) -> bool:
    """Return whether a layer belongs to an expert, by its name."""
    return _EXPERT.matches(layer)


class CompressedTensors(SafetensorsFormat):
    """Format ``compressed-tensors``.

    A symmetric model has a config group for each grid. For an asymmetric one transformers 5.24 with
    compressed-tensors 0.20 reads only the first config group (``get_dense_scheme`` applies it to all
    layers), so all its layers are on one grid. Scales are in the weights' own dtype, since
    compressed-tensors multiplies codes by scales in the scales' dtype and converts afterwards: any
    other dtype would round the weights twice.

    Experts are separate linear layers, ``<...>.experts.<number>.<...>``. Transformers and vLLM read no zero
    points of experts and need one grid for all of them: they are symmetric, with groups of one length, in a
    config group selected by their names. Transformers merges them into its tensors of all experts while it
    loads (``dequantize``), and then the other layers must be on one grid too.
    """

    name = METHOD
    methods = (METHOD,)
    rules = GridRules(bits=tuple(range(2, 9)))
    finders = (ZerosFrom1(),)
    parts = (
        "weight_packed",
        "weight_scale",
        "weight_shape",
        "weight_zero_point",
        "weight_g_idx",
    )

    def holds(self, layer: str) -> bool:
        """See `Format`; heads too."""
        return super().holds(layer) or layer == "lm_head"

    def is_uniform(self, asked: Mapping[str, LayerGrid]) -> bool:
        """See `Format`."""
        return not all(grid.symmetric for grid in asked.values())

    def grids(
        self, weights: Mapping[str, TensorInfo], asked: Mapping[str, LayerGrid]
    ) -> dict[str, LayerGrid]:
        """See `Format`; refuses zero points that compressed-tensors cannot read back."""
        experts = {
            layer: replace(grid, symmetric=True)
            for layer, grid in asked.items()
            if is_expert(layer)
        }
        others = {layer: grid for layer, grid in asked.items() if layer not in experts}
        uniform = bool(experts) or self.is_uniform(asked)
        grids: dict[str, LayerGrid] = {}
        for part in (others, experts):
            grids |= self.stored_grids(weights, part, uniform=uniform) if part else {}
        for layer, grid in grids.items():
            rows, length = weights[layer].shape
            groups = length // (grid.group_size or length)
            one_word = word_count(rows, grid.bits) == 1
            if grid.bits == 4 and not grid.symmetric and one_word and groups > 1:
                raise ValueError(
                    f"{layer}: compressed-tensors 0.20 cannot read 4-bit zero points of {rows} rows "
                    f"in {groups} groups: use the symmetric grid, other bits, or one scale a row"
                )
        return grids

    def configuration(self, grids: Mapping[str, LayerGrid], left: Left) -> dict[str, Any]:
        """See `SafetensorsFormat`."""
        layers: dict[tuple[int, int | None, bool], list[str]] = {}
        experts: set[tuple[int, int | None, bool]] = set()
        for layer, grid in grids.items():
            kind = grid.bits, grid.group_size, grid.symmetric
            if is_expert(layer):
                experts.add(kind)
            else:
                layers.setdefault(kind, []).append(layer)
        # A layer's name takes precedence over its class in any order; this order causes no warnings.
        kinds = sorted(layers, key=lambda kind: len(layers[kind]))
        named = ([_target(layer, left) for layer in layers[kind]] for kind in kinds[:-1])
        targets = [*named, ["Linear"]]
        groups = [_config_group(*kind, [f"re:{EXPERT}"]) for kind in experts]
        groups += [_config_group(*kind, names) for kind, names in zip(kinds, targets, strict=True)]
        config: dict[str, Any] = {
            "quant_method": METHOD,
            "format": FORMAT,
            "quantization_status": "compressed",
            "config_groups": {f"group_{index}": group for index, group in enumerate(groups)},
            "ignore": ignored(left),
            "kv_cache_scheme": None,
        }
        if experts or self.is_uniform(grids):
            # Transformers decompresses on the first forward pass, or while loading if this is set.
            # The former fails on zero points, which compressed-tensors 0.20 expects unpacked there, and
            # does not handle experts.
            config["dequantize"] = True
        return {"quantization_config": config}

    def pack(self, quantized: QuantizedWeight) -> dict[str, NDArray[Any]]:
        """See `SafetensorsFormat`."""
        require_integer_zeros(quantized)
        if quantized.g_idx is not None:
            raise ValueError("g_idx: expected None, compressed-tensors has no groups out of order")
        tensors = {
            "weight_packed": pack_bits(quantized.codes, quantized.bits),
            "weight_scale": quantized.scales,
            "weight_shape": np.array(quantized.codes.shape, np.int64),
        }
        if not quantized.symmetric:
            packed = pack_bits(quantized.zeros.T, quantized.bits)
            tensors["weight_zero_point"] = np.ascontiguousarray(packed.T)
        return tensors

    def packed_bytes(self, shape: tuple[int, ...], grid: LayerGrid) -> int:
        """See `SafetensorsFormat`."""
        rows, channels = shape
        groups = channels // (grid.group_size or channels)
        words = rows * word_count(channels, grid.bits)
        if not grid.symmetric:
            words += word_count(rows, grid.bits) * groups
        return 4 * words + rows * groups * grid.scale_dtype.itemsize + 16

    def unpack(self, tensors: Mapping[str, NDArray[Any]], grid: LayerGrid) -> QuantizedWeight:
        """See `SafetensorsFormat`; a ``weight_g_idx`` [K] is read too."""
        bits = grid.bits
        rows, channels = stored_tensor(tensors, "weight_shape", np.integer, (2,)).tolist()
        scales = stored_floats(tensors, "weight_scale", (rows, None))
        groups = scales.shape[1]
        if channels < 1 or groups < 1 or channels % groups:
            raise ValueError(
                f"weight_scale: expected a divisor of K = {channels} columns, got {groups}"
            )
        size = channels // groups
        if size != (grid.group_size or channels):
            raise ValueError(
                f"weight_scale: expected groups of {grid.group_size or channels} as in "
                f"quantization_config, got groups of {size}"
            )
        words = stored_tensor(
            tensors, "weight_packed", np.int32, (rows, word_count(channels, bits))
        )
        if grid.symmetric:
            zeros = np.full(scales.shape, 1 << (bits - 1), np.uint8)
        else:
            shape = (word_count(rows, bits), groups)
            packed = stored_tensor(tensors, "weight_zero_point", np.int32, shape)
            zeros = np.ascontiguousarray(unpack_bits(packed.T, bits, rows).T)
        g_idx = None
        if "weight_g_idx" in tensors:
            g_idx = read_g_idx(tensors, "weight_g_idx", channels, groups)
        codes = unpack_bits(words, bits, channels)
        return QuantizedWeight(codes, scales, zeros, bits, size, grid.symmetric, g_idx)

    def stored_shape(self, checkpoint: Checkpoint, layer: str, grid: LayerGrid) -> tuple[int, int]:
        """See `SafetensorsFormat`."""
        del grid
        name = f"{layer}.weight_shape"
        shape = stored_tensor({name: checkpoint.tensor(name)}, name, np.integer, (2,))
        return int(shape[0]), int(shape[1])

    def recognizes(self, checkpoint: Checkpoint) -> bool:
        """See `Format`."""
        config = checkpoint.hf_config().get("quantization_config")
        given = config if isinstance(config, Mapping) else {}
        return given.get("quant_method") == METHOD and given.get("format") not in OTHERS

    def grid_of(self, checkpoint: Checkpoint) -> GridOf:
        """See `SafetensorsFormat`."""
        schemes = _schemes(checkpoint)

        def grid_of(layer: str) -> LayerGrid:
            scheme = schemes.of(layer)
            float32 = np.dtype(np.float32)
            return LayerGrid(scheme.bits, scheme.group_size, scheme.symmetric, float32)

        return grid_of


def _schemes(checkpoint: Checkpoint) -> PackedSchemes:
    return read_schemes(Fields(checkpoint.hf_config()).object("quantization_config"))


def ignored(left: Left) -> list[str]:
    """Return names of unquantized layers and parts that also match in runtimes that prefix them."""
    layers = [
        f"re:.*{layer}$" if left.is_wrapped and layer == "lm_head" else _target(layer, left)
        for layer in left.layers
    ]
    return layers + [f"re:.*{re.escape(part)}.*" for part in left.parts]


def _target(layer: str, left: Left) -> str:
    """Return a layer's name, or an expression for it if runtimes prefix the name."""
    end = re.escape(layer.removeprefix("model."))
    return rf"re:.*\.{end}$" if left.is_wrapped else layer


def _config_group(
    bits: int, group_size: int | None, symmetric: bool, targets: list[str]
) -> dict[str, Any]:
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "channel" if group_size is None else "group",
        "group_size": group_size,
        "dynamic": False,
    }
    return {"targets": targets, "weights": weights, "format": FORMAT}
