"""Plain-text tables of what a run found."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from numbacalib.methods import LayerReport


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


def layer_table(reports: Sequence[LayerReport]) -> str:
    """Table of the layers of a run: loss against round-to-nearest, and what may have gone wrong."""
    rows = []
    for report in reports:
        rows.append(
            [
                report.name,
                f"{report.shape[0]} x {report.shape[1]}",
                str(report.group_size),
                _number(report.loss),
                _number(report.rtn_loss),
                _ratio(report.loss, report.rtn_loss),
                _tokens(report),
                _number(report.effective_rank),
                _damping(report),
                _number(report.smallest_pivot),
                "-" if report.clipped is None else f"{100 * report.clipped:.2f}",
                f"{report.seconds:.2f}",
            ]
        )
    header = ["layer", "M x K", "group", "loss", "RTN loss", "ratio", "tokens", "rank"]
    return table([*header, "percdamp", "least pivot", "clipped %", "seconds"], rows)


def require_writable(path: str | Path, output: str | Path) -> None:
    """Check that a report can be written, before the run that it is to be about.

    Raises
    ------
    ValueError
        If `path` is a directory, in a directory that does not exist, or in `output`, which is to be
        new or empty.
    OSError
        If it may not be written.
    """
    path = Path(path)
    if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(output)):
        raise ValueError(f"{path}: expected a report outside of the output {output}")
    if path.is_dir():
        raise ValueError(f"{path}: expected a file for the report, found a directory")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: expected a report in a directory that exists")
    new = not path.exists()
    if new or path.is_file():  # devices and pipes are not opened twice
        path.open("a").close()
    if new:
        path.unlink()


def save_layers(path: str | Path, reports: Sequence[LayerReport]) -> None:
    """Write the reports of a run as a JSON list, one object a layer by the names of `LayerReport`."""
    text = json.dumps([asdict(report) for report in reports], indent=2)
    Path(path).write_text(text + "\n", encoding="utf-8")


def _tokens(report: LayerReport) -> str:
    if report.tokens is None:
        return "-"
    return f"{report.tokens}" if report.full_rank else f"{report.tokens} < {report.shape[1]}"


def _damping(report: LayerReport) -> str:
    tries = f" ({report.tries} tries)" if report.fell_back else ""
    return _number(report.percdamp) + tries


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _ratio(value: float | None, reference: float | None) -> str:
    if value is None or not reference:
        return "-"
    return f"{value / reference:.3f}"
