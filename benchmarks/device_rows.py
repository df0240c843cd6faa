"""Rows of `devices_gpu.py`, as they stand in the CSV, and their table."""

from __future__ import annotations

from math import isnan
from typing import NamedTuple

from numbacalib.quantizer.report import table


class DeviceRow(NamedTuple):
    """A figure of one model on both devices."""

    model: str
    dtype: str
    figure: str
    cpu: float
    gpu: float
    limit: float
    """How far they may differ, as a share; NaN where nothing was asked."""

    @property
    def difference(self) -> float:
        """How far they differ, as a share."""
        return abs(self.gpu / self.cpu - 1)

    @property
    def falls_short(self) -> bool:
        """True where they differ by more than they may."""
        return not (self.difference <= self.limit or isnan(self.limit))


def devices_body(rows: list[DeviceRow]) -> str:
    """Return one line a figure."""
    lines = [
        [
            row.model,
            row.dtype,
            row.figure,
            f"{row.cpu:.6g}",
            f"{row.gpu:.6g}",
            f"{row.difference:.3%}"
            + ("" if isnan(row.limit) else f" of {row.limit:.2%}")
            + (" (short)" if row.falls_short else ""),
        ]
        for row in rows
    ]
    return table(["model", "dtype", "figure", "CPU", "GPU", "difference"], lines)
