"""Grids of FP4 formats: search for a weight's grid, encoding and decoding of its scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.bit_packing import pack_bits, unpack_bits
from numbacalib.formats.format import GridRules, LayerGrid
from numbacalib.methods import QuantizedWeight, fp4_scales
from numbacalib.methods.settings import FoundGrids, GridSettings
from numbacalib.models.checkpoint import TensorInfo
from numbacalib.spec.grid import E2M1
from numbacalib.spec.small_floats import BITS, FP4, nvfp4_global_scale


@dataclass(frozen=True)
class Fp4Finder:
    """Finder of the scales of an FP4 format; see `numbacalib.methods.settings.GridFinder`.

    The ranges "full" take the scales that span their groups; the others search for those of least loss:
    weighted by the blocks of the Hessian if there is one, by an importance, or unweighted.
    """

    kind: str
    """One of `FP4`."""
    shared: bool = False
    """True if a global scale is stored, which all weights quantized together share."""

    refit: ClassVar = None

    def __call__(self, weight: Any, settings: GridSettings) -> FoundGrids:
        """Return scales and their divisor, the global scale."""
        divisor = None
        if FP4[self.kind].global_scale:
            assert settings.largest is not None
            divisor = float(nvfp4_global_scale(settings.largest)) if self.shared else 1.0
        by_blocks = settings.hessian is not None
        found = fp4_scales(
            weight,
            self.kind,
            search=settings.search is not None,
            hessian=settings.hessian,
            importance=None if by_blocks else settings.importance,
            global_scale=divisor,
        )
        return FoundGrids(found.scales, None, divisor if self.shared else None)


def fp4_rules(kind: str) -> GridRules:
    """Return the rules of a format that stores only one kind of `FP4`."""
    size = FP4[kind].group_size
    return GridRules(
        bits=(BITS,),
        symmetric=(True,),
        group_sizes=(size,),
        whole_rows=False,
        scale_dtypes=("float32",),
        channel_multiple=size,
    )


def check_fp4(asked: LayerGrid) -> None:
    """Refuse widths other than FP4's; the format determines groups and grid.

    Raises
    ------
    ValueError
    """
    if asked.bits != BITS:
        raise ValueError(f"bits: expected {BITS}, got {asked.bits}")


def fp4_grids(
    rules: GridRules,
    weights: Mapping[str, TensorInfo],
    asked: Mapping[str, LayerGrid],
    finder: Fp4Finder,
) -> dict[str, LayerGrid]:
    """Return the grid of each layer in an FP4 format.

    Raises
    ------
    ValueError
        If a layer does not fit.
    """
    for layer, grid in asked.items():
        check_fp4(grid)
        rules.check_shape(layer, weights[layer].shape)
    return dict.fromkeys(asked, fp4_grid(finder))


def fp4_grid(finder: Fp4Finder) -> LayerGrid:
    """Return the grid of one of `FP4`."""
    size = FP4[finder.kind].group_size
    return LayerGrid(BITS, size, True, np.dtype(np.float32), finder, element=E2M1)


def require_fp4(quantized: QuantizedWeight) -> None:
    """Refuse a weight without codes of E2M1, or with groups that are not runs of channels.

    Raises
    ------
    ValueError
    """
    if quantized.element != E2M1:
        raise ValueError(f"codes: expected {E2M1} in this format, got {quantized.element}")
    if quantized.g_idx is not None:
        raise ValueError("g_idx: expected None, FP4 formats have no groups out of order")


def pack_codes(quantized: QuantizedWeight) -> NDArray[np.uint8]:
    """Return codes as bytes [M, K / 2], the first of two in the lower bits.

    Raises
    ------
    ValueError
        As `require_fp4`.
    """
    require_fp4(quantized)
    return pack_bits(quantized.codes, BITS).view(np.uint8)


def unpack_codes(stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Undo `pack_codes`."""
    words = np.ascontiguousarray(stored).view(np.int32)
    return unpack_bits(words, BITS, 2 * stored.shape[1])


def scale_codes(quantized: QuantizedWeight, kind: str) -> NDArray[np.uint8]:
    """Return scales as their codes, uint8 [M, G].

    Raises
    ------
    ValueError
        If one is not a number of the format divided by the global scale.
    """
    form = FP4[kind]
    if quantized.group_size != form.group_size:
        raise ValueError(f"group_size: expected {form.group_size}, got {quantized.group_size}")
    divisor = np.float32(1 if quantized.global_scale is None else quantized.global_scale)
    scales = quantized.scales.astype(np.float32)
    values = form.scales.values
    with np.errstate(over="ignore"):
        middles = np.sqrt(values[:-1].astype(np.float64) * values[1:])
        codes = np.searchsorted(middles, (scales * divisor).astype(np.float64)).astype(np.uint8)
    wrong = values[codes] / divisor != scales
    if wrong.any():
        where = np.unravel_index(int(wrong.argmax()), wrong.shape)
        raise ValueError(f"scales: expected those that {kind} stores, got {scales[where]}")
    return codes


def fp4_weight(
    codes: NDArray[np.uint8], stored: NDArray[np.uint8], kind: str, divisor: float | None
) -> QuantizedWeight:
    """Return a weight from its codes, the codes of its scales and its global scale.

    Raises
    ------
    ValueError
        If a code of a scale is not a number.
    """
    form = FP4[kind]
    if stored.max(initial=0) >= len(form.scales.values):
        raise ValueError(f"expected codes below {len(form.scales.values)}, got {stored.max()}")
    scales = form.scales.values[stored]
    if divisor is not None:
        scales = scales / np.float32(divisor)
    return QuantizedWeight(
        codes,
        scales,
        np.zeros(scales.shape, np.uint8),
        BITS,
        form.group_size,
        True,
        element=E2M1,
        global_scale=divisor,
    )
