"""Weights of models published in few bits with scales, decoded to bfloat16.

DeepSeek and others: FP8 (E4M3, Micikevicius et al. 2022, arXiv 2209.05433) with a scale for each block of
a matrix, or for the whole (DeepSeek-AI 2024, arXiv 2412.19437, section 3.3; ``weight_scale_inv`` multiplies
the codes). GPT-OSS: MXFP4, blocks of 32 numbers with a power-of-two scale each (Open Compute Project 2023,
Microscaling Formats 1.0, sections 5.3 and 6.3), in tensors of all experts
(`numbacalib.models.fused_experts`).
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.fields import Fields
from numbacalib.models.mxfp4 import mxfp4_values
from numbacalib.models.safetensors_file import TensorEntry
from numbacalib.runtime.extras import extra

with extra("models"):
    import ml_dtypes

__all__ = ["DTYPE", "PackedSource", "packed_source"]

DTYPE = np.dtype(ml_dtypes.bfloat16)
"""Dtype of decoded weights: the one in which these models were trained."""

Shape = tuple[int, ...]


class PackedSource(abc.ABC):
    """One packed format of weights in files.

    Attributes
    ----------
    codes, scales : str
        Suffixes of the names of a weight's two tensors, after its layer's name.
    others : tuple of str
        Suffixes of tensors that do not concern weights.
    """

    codes: str
    scales: str
    others: tuple[str, ...] = ()

    @abc.abstractmethod
    def packs(self, entry: TensorEntry) -> bool:
        """Return whether a tensor with the suffix of codes is packed: some layers are not."""

    @abc.abstractmethod
    def shape(self, codes: Shape, scales: Shape) -> Shape:
        """Shape of a weight.

        Raises
        ------
        ValueError
            If the shapes of codes and scales do not match.
        """

    @abc.abstractmethod
    def decode(self, codes: NDArray[Any], scales: NDArray[Any]) -> NDArray[Any]:
        """Return the weight in `DTYPE`."""


_FLOAT8 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)


class BlockFloat8(PackedSource):
    """E4M3 with a scale for each block of rows and columns, or one for the whole matrix."""

    codes, scales = "weight", "weight_scale_inv"
    others = ("activation_scale", "input_scale")

    def __init__(self, block: tuple[int, int] | None) -> None:
        self._block = block

    def packs(self, entry: TensorEntry) -> bool:
        return entry.dtype_name == "F8_E4M3"

    def shape(self, codes: Shape, scales: Shape) -> Shape:
        if self._block is None:
            expected, fits = "one factor", scales in ((), (1,), (1, 1))
        else:
            blocks = [-(-n // size) for n, size in zip(codes, self._block, strict=False)]
            expected, fits = f"{blocks} factors", list(scales) == blocks
        if not fits or len(codes) != 2:
            raise ValueError(f"expected {expected} of a matrix {list(codes)}, got {list(scales)}")
        return codes

    def decode(self, codes: NDArray[Any], scales: NDArray[Any]) -> NDArray[Any]:
        rows, columns = codes.shape
        height, width = self._block or (rows, columns)
        factors = scales.astype(np.float32).reshape(-(-rows // height), -(-columns // width))
        weight = np.empty(codes.shape, DTYPE)
        for number, own in enumerate(factors):
            part = slice(number * height, (number + 1) * height)
            weight[part] = _FLOAT8[codes[part].view(np.uint8)] * own.repeat(width)[:columns]
        return weight


class BlocksOfFloat4(PackedSource):
    """MXFP4: blocks of 16 bytes of E2M1 codes and the exponent of their scale."""

    codes, scales = "weight_blocks", "weight_scales"

    def packs(self, entry: TensorEntry) -> bool:
        del entry
        return True

    def shape(self, codes: Shape, scales: Shape) -> Shape:
        if codes[1:] != (*scales[1:], 16) or codes[0] != scales[0]:
            raise ValueError(f"expected {list(codes[:-1])} scales, got {list(scales)}")
        return codes[0], 32 * codes[1]

    def decode(self, codes: NDArray[Any], scales: NDArray[Any]) -> NDArray[Any]:
        return mxfp4_values(codes, scales).astype(DTYPE)


def packed_source(config: Mapping[str, Any]) -> PackedSource | None:
    """Return the packed format of a ``config.json``; None if there is none, or it is an output format.

    Raises
    ------
    ValueError
        One line that names the unsupported key.
    """
    fields = Fields(config).object("quantization_config", None)
    if fields is None or "quant_method" not in fields:
        return None
    read = _SOURCES.get(fields.text("quant_method"))
    return None if read is None else read(fields)


def _read_float8(fields: Fields) -> PackedSource:
    fields.choice("fmt", ("e4m3",), "e4m3")
    block = fields.integers("weight_block_size", 1, 2, None)
    fields.choice("activation_scheme", ("dynamic", "static"), "dynamic")
    fields.refuse_unread(("quant_method", "scale_fmt", "modules_to_not_convert", "dequantize"))
    return BlockFloat8(None if block is None else (block[0], block[1]))


def _read_float4(fields: Fields) -> PackedSource:
    fields.refuse_unread(("quant_method", "modules_to_not_convert", "dequantize"))
    return BlocksOfFloat4()


_SOURCES = {"fp8": _read_float8, "mxfp4": _read_float4}
