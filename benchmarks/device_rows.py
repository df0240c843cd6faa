"""Rows of `devices_gpu.py`, as in the CSV, and their table."""

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
    """Largest allowed difference, as a share; NaN for no limit."""

    @property
    def difference(self) -> float:
        """Relative difference of both."""
        return abs(self.gpu / self.cpu - 1)

    @property
    def falls_short(self) -> bool:
        """True if the difference exceeds the limit."""
        return not (self.difference <= self.limit or isnan(self.limit))


def devices_body(rows: list[DeviceRow]) -> str:
    """Return one line per figure."""
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
