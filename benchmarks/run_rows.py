"""Rows of `runs.py`, as they stand in the CSV, and their table."""

from __future__ import annotations

from typing import NamedTuple

from numbacalib.quantizer.preflight import in_units
from numbacalib.quantizer.report import table

LIMITS = {"host memory": 0.2, "device memory": 0.2, "time": 0.4}
"""How far a plan may be off, a share of what was taken."""
KEEPING = 0.03
"""Share of the time that keeping blocks may take."""


class RunRow(NamedTuple):
    """A run's plan and what it took, as they stand in the CSV."""

    model: str
    what: str
    """A key of `LIMITS`, or "keeping blocks"."""
    planned: float
    taken: float
    unit: str

    @property
    def error(self) -> float:
        """Of the plan, a share of what was taken."""
        return self.planned / self.taken - 1

    @property
    def falls_short(self) -> bool:
        """True where the plan is further off than it may be, or keeping takes too long."""
        if self.what in LIMITS:
            return not abs(self.error) <= LIMITS[self.what]
        return not self.taken <= self.planned

    def shown(self, value: float) -> str:
        """Return a figure of it with its unit; of a share, the limit too."""
        if self.what not in LIMITS:
            return f"{'≤ ' if value == self.planned else ''}{value:.1%}"
        return in_units(1e6 * value) if self.unit == "MB" else f"{value:.3g} {self.unit}"

    def verdict(self) -> str:
        """Say how far off it is, and whether that is too much."""
        short = " (short)" if self.falls_short else ""
        return f"{self.error:+.0%}{short}" if self.what in LIMITS else short.strip()


def runs_body(rows: list[RunRow]) -> str:
    """Return one line a figure."""
    lines = [
        [row.model, row.what, row.shown(row.planned), row.shown(row.taken), row.verdict()]
        for row in rows
    ]
    return table(["model", "what", "planned", "taken", "error"], lines)
