"""Rows of `runs.py`, as in the CSV, and their table."""

from __future__ import annotations

from typing import NamedTuple

from numbacalib.quantizer.preflight import in_units
from numbacalib.quantizer.report import table

LIMITS = {"host memory": 0.2, "device memory": 0.2, "time": 0.4}
"""Allowed errors of a plan, as shares of the actual figures."""
KEEPING = 0.03
"""Share of the time that keeping blocks may take."""


class RunRow(NamedTuple):
    """Planned and actual figure of a run, as in the CSV."""

    model: str
    what: str
    """A key of `LIMITS`, or "keeping blocks"."""
    planned: float
    taken: float
    unit: str

    @property
    def error(self) -> float:
        """Error of the plan, as a share of the actual figure."""
        return self.planned / self.taken - 1

    @property
    def falls_short(self) -> bool:
        """True if the plan's error exceeds its limit, or keeping takes too long."""
        if self.what in LIMITS:
            return not abs(self.error) <= LIMITS[self.what]
        return not self.taken <= self.planned

    def shown(self, value: float) -> str:
        """Format a figure with its unit; the limit of a share gets its sign."""
        if self.what not in LIMITS:
            return f"{'≤ ' if value == self.planned else ''}{value:.1%}"
        return in_units(1e6 * value) if self.unit == "MB" else f"{value:.3g} {self.unit}"

    def verdict(self) -> str:
        """Format the error, with a mark if it is too large."""
        short = " (short)" if self.falls_short else ""
        return f"{self.error:+.0%}{short}" if self.what in LIMITS else short.strip()


def runs_body(rows: list[RunRow]) -> str:
    """Return one line per figure."""
    lines = [
        [row.model, row.what, row.shown(row.planned), row.shown(row.taken), row.verdict()]
        for row in rows
    ]
    return table(["model", "what", "planned", "taken", "error"], lines)
