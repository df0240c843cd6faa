"""Integer grids adapted to what a format can store: see `GridFinder`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from numbacalib.methods.block_scales import block_scales
from numbacalib.methods.rounding import find_scales
from numbacalib.methods.settings import FoundGrids, GridSettings, Refit
from numbacalib.ops.grid import stored_arrays
from numbacalib.ops.matrix import from_host, to_host
from numbacalib.spec.block_grid import BlockGrid


@dataclass(frozen=True)
class ZerosFrom1:
    """Integer zeros from 1 on; only groups without a negative weight would have a zero of 0.

    Such a group loses one step of its range.
    """

    refit: ClassVar = Refit("integers", least_zero=1)

    def __call__(self, weight: Any, settings: GridSettings) -> FoundGrids:
        """See `GridFinder`."""
        scales, zeros = _found(weight, settings)
        return FoundGrids(scales, from_host(np.maximum(to_host(zeros), np.uint8(1)), scales))


@dataclass(frozen=True)
class StoredBiases:
    """Real zeros of the bias ``-zero * scale``, rounded to the scales' dtype."""

    refit: ClassVar = Refit("biases")

    def __call__(self, weight: Any, settings: GridSettings) -> FoundGrids:
        """See `GridFinder`."""
        scales, zeros = _found(weight, settings)
        on_host = to_host(scales)
        biases = biases_of(on_host, to_host(zeros)).astype(np.float32)
        return FoundGrids(scales, from_host(-biases / on_host.astype(np.float32), scales))


@dataclass(frozen=True)
class RealZeros:
    """Scales and real zeros of least weighted error, both rounded to the scales' dtype.

    The search is that of GGML's blocks with a minimum each: scales are float16 numbers.
    """

    refit: ClassVar = None

    def __call__(self, weight: Any, settings: GridSettings) -> FoundGrids:
        """See `GridFinder`."""
        grid = BlockGrid(settings.grid.bits, settings.group_size, 1, 0, True)
        scales, zeros = block_scales(weight, grid, settings.importance).grids(grid)
        stored = zeros.astype(settings.scale_dtype).astype(np.float32)
        scales = scales.astype(settings.scale_dtype)
        return FoundGrids(from_host(scales, weight), from_host(stored, weight))


def biases_of(scales: NDArray[Any], zeros: NDArray[Any]) -> NDArray[Any]:
    """Return the biases, which are added to codes times scales, in the scales' dtype."""
    return (-zeros.astype(np.float32) * scales.astype(np.float32)).astype(scales.dtype)


def _found(weight: Any, settings: GridSettings) -> tuple[Any, Any]:
    """Scales and integer zeros of the search, in their stored dtypes."""
    *stored, require_finite_scales = stored_arrays(
        *find_scales(weight, settings), settings.scale_dtype, settings.grid
    )
    require_finite_scales()
    return stored[0], stored[1]
