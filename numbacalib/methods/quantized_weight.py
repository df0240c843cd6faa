"""A quantized weight as arrays, NumPy's or on a CUDA device, independent of file formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Generic, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numbacalib.methods.gptq_report import GptqReport
from numbacalib.ops.grid import grid_values
from numbacalib.ops.matrix import cast, to_host
from numbacalib.runtime import checks
from numbacalib.runtime.array import Array, ArrayT
from numbacalib.runtime.backend import arrays_of_one_device
from numbacalib.spec.grid import INTEGER, group_indices


class StoredWeight(Protocol):
    """A weight [M, K] in a form that takes less memory."""

    def dequantize(self, dtype: DTypeLike = np.float32) -> Array:
        """Return the weights that are stored, [M, K]."""


@dataclass(frozen=True, eq=False)
class QuantizedWeight(Generic[ArrayT]):
    """Codes and grids of one linear layer's weight [M, K].

    ``weight[i, j] = (codes[i, j] - zeros[i, g]) * scales[i, g]`` with ``g = g_idx[j]``, or
    ``j // group_size`` if `g_idx` is None. Codes and zeros are unsigned on both grids: symmetric ones are
    the signed codes plus ``2 ** (bits - 1)``, which is also their zero. With ``signed=True`` both are less
    by that number; formats take unsigned ones. With the element "e2m1" a code stands for a floating-point
    number, and zeros are 0.
    """

    codes: ArrayT
    """uint8 [M, K], in ``[0, 2 ** bits - 1]``; signed ones int8."""
    scales: ArrayT
    """[M, G], in the dtype in which they are stored."""
    zeros: ArrayT
    """[M, G], uint8, or float32 if the grid has real ones; signed ones int8."""
    bits: int
    group_size: int
    """Input channels that share a scale: K for one scale a row."""
    symmetric: bool
    g_idx: NDArray[np.int64] | None = None
    """Group of each input channel, [K] on the host, if groups are not runs of channels."""
    report: GptqReport | None = field(default=None, compare=False)
    """Report of GPTQ, if it chose the codes and the call waited; otherwise None."""
    element: str = INTEGER
    """Kind of the codes: "int" or "e2m1"."""
    global_scale: float | None = None
    """Number by which the scales are already divided, if a format stores one for the whole tensor."""
    checks: Sequence[Callable[[], None]] = field(default=(), compare=False, repr=False)
    """Checks in progress on a device: see `check`."""

    @property
    def group_of(self) -> NDArray[np.int64]:
        """Group of each input channel, [K]."""
        if self.g_idx is not None:
            return self.g_idx
        return group_indices(self.codes.shape[1], self.group_size)

    def __eq__(self, other: object) -> bool:
        """Compare codes, grids and groups to the bit, on any device; reports may differ."""
        if not isinstance(other, QuantizedWeight):
            return NotImplemented
        mine, theirs = self.to_host(), other.to_host()
        return all(
            np.array_equal(getattr(mine, part.name), getattr(theirs, part.name))
            for part in fields(self)
            if part.compare
        )

    def check(self) -> None:
        """Wait for the checks that a call with ``wait=False`` left, and raise their errors.

        Raises
        ------
        ValueError
            If a value is not finite, or a scale is 0 or too large for its dtype.
        numpy.linalg.LinAlgError
            If the damped Hessian is not positive definite.
        """
        for check in self.checks:
            check()

    def to_host(self) -> QuantizedWeight[NDArray[Any]]:
        """Return the same with NumPy arrays."""
        codes, scales, zeros = map(to_host, (self.codes, self.scales, self.zeros))
        host: QuantizedWeight[Any] = replace(self, codes=codes, scales=scales, zeros=zeros)
        return host

    def dequantize(self, dtype: DTypeLike = np.float32) -> ArrayT:
        """Return the weights that the codes stand for, [M, K], computed in float32.

        `dtype` is one of the four dtypes of weights, of NumPy, ml_dtypes or torch, or its name.
        """
        target = checks.float_dtype("dtype", dtype)
        with arrays_of_one_device(codes=self.codes, scales=self.scales, zeros=self.zeros) as arrays:
            codes, scales, zeros = arrays
            scales = cast(scales, np.float32)
            grid = self.group_of, self.bits, self.element
            return cast(grid_values(codes, scales, zeros, *grid), target)
