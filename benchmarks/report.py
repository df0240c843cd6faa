"""Tables, plot and verdict from a benchmark's CSV: ``python benchmarks/report.py FILE.csv``.

Replaces the region ``<!-- table: NAME -->`` to ``<!-- end -->`` of README.md, where NAME is the first
word of the file's name, draws the plot beside the CSV, prints what falls short and exits 1 then.
"""

from __future__ import annotations

import math
import re
import sys
from itertools import groupby
from pathlib import Path

from harness import LIMIT, OURS, Row, read_csv

README = Path(__file__).parent.parent / "README.md"
PLOTTED = "GPTQ of a layer"


def shortfalls(rows: list[Row]) -> list[str]:
    """Say of each row that misses its target what it is, reaches and must reach."""
    return [
        f"{row.op} {row.shape} {row.dtype}: {row.who} at {row.share:.3g} of {row.against}, "
        f"target {row.target[:2]} {row.target[2:]}"
        for row in rows
        if row.falls_short
    ]


def markdown_table(machine: dict[str, str], rows: list[Row]) -> str:
    """Return one line a case: our figure, its share of the limit or the peer, and the peers' times.

    A case that is not ours has the times alone.
    """
    lines = [
        f"{machine['machine']}, {machine['cores']} cores, {machine['date']}; {machine['versions']}.",
        "",
        "| work | shape | type | numbacalib | share, target | others |",
        "|---|---|---|---|---|---|",
    ]
    for (op, shape, dtype), case in groupby(rows, key=lambda row: row[:3]):
        candidates = list(case)
        others = [row for row in candidates if not row.who.startswith((OURS, LIMIT))]
        ours = [row for row in candidates if row.who.startswith(OURS)]
        times = ", ".join(f"{other.who} {_seconds(other.seconds)}" for other in others)
        if others and not ours:
            lines.append(f"| {op} | {shape} | {dtype} |  |  | {times} |")
        for row in ours:
            variant = row.who.removeprefix(OURS)
            cells = (
                f"{op}{variant}",
                shape,
                dtype,
                _figure(row),
                _share(row),
                times,
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _figure(row: Row) -> str:
    parts = [] if math.isnan(row.seconds) else [_seconds(row.seconds)]
    if row.unit != "s":
        parts.append(f"{row.rate:.3g} {row.unit}")
    return ", ".join([*parts, row.note] if row.note else parts)


def _share(row: Row) -> str:
    if not row.target:
        return ""
    verdict = " (short)" if row.falls_short else ""
    sign = {">=": "≥", "<=": "≤"}[row.target[:2]]
    return f"{row.share:.2f} of {row.against.removeprefix(LIMIT)}, {sign} {row.target[2:]}{verdict}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def update_readme(name: str, table: str) -> None:
    """Put `table` between README's markers of that name.

    Raises
    ------
    ValueError
        If the markers are not there.
    """
    marked = re.compile(rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    text, count = marked.subn(lambda m: f"{m[1]}\n{table}\n\n{m[2]}", README.read_text())
    if count != 1:
        raise ValueError(f"README.md: expected one region <!-- table: {name} -->, found {count}")
    README.write_text(text)


def plot(file: Path, rows: list[Row]) -> Path | None:
    """Draw time against K of square layers, a line for each candidate, dashed for a limit."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        square = re.fullmatch(r"(\d+) x \1", row.shape)
        if row.op == PLOTTED and square:
            lines.setdefault(row.who, []).append((int(square[1]), row.seconds))
    if not lines:
        return None
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for who, points in lines.items():
        style = "k--" if who.startswith(LIMIT) else "o-"
        width = 2.5 if who.startswith(OURS) else 1.2
        axes.plot(*zip(*sorted(points), strict=True), style, label=who, linewidth=width)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("K (square layers)")
    axes.set_ylabel("seconds, preparation included")
    axes.set_title(PLOTTED + ", 4 bits, groups of 128")
    axes.grid(alpha=0.3)
    axes.legend()
    image = file.with_suffix(".png")
    figure.savefig(image, dpi=120)
    pyplot.close(figure)
    return image


def report(file: Path, *, readme: bool) -> int:
    """Print the table and what falls short, draw the plot, update README; return the exit status."""
    machine, rows = read_csv(file)
    table = markdown_table(machine, rows)
    print(table)
    plot(file, rows)
    if readme:
        update_readme(file.name.split("-")[0], table)
    missed = shortfalls(rows)
    print(f"\n{len(missed)} of {sum(bool(row.target) for row in rows)} targets missed")
    print("\n".join(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(report(Path(sys.argv[1]), readme=True))
