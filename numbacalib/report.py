"""Plain-text tables of what a run found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numbacalib.pipeline import LayerResult


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with padded columns, the first to the left, the others to the right."""
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "| " + " | ".join([first, *rest]) + " |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def layer_table(results: Sequence[LayerResult]) -> str:
    """Table of the layers of a run: loss against round-to-nearest, damping, seconds."""
    rows = []
    for result in results:
        rows.append(
            [
                result.name,
                f"{result.shape[0]} x {result.shape[1]}",
                str(result.group_size),
                _number(result.loss),
                _number(result.rtn_loss),
                _ratio(result.loss, result.rtn_loss),
                _number(result.damping),
                f"{result.seconds:.2f}",
            ]
        )
    header = ["layer", "M x K", "group", "loss", "RTN loss", "ratio", "damping", "seconds"]
    return table(header, rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _ratio(value: float | None, reference: float | None) -> str:
    if value is None or not reference:
        return "-"
    return f"{value / reference:.3f}"
