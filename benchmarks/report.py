"""Puts the benchmarks' tables into the documents, and checks that they match the results.

    python benchmarks/report.py FILE.csv ...    tables, plot and verdict of files
    python benchmarks/report.py --check         exits 1 if a table differs from its CSV

Markers in a document place the tables: the region from ``<!-- table: FILE.csv -->`` to ``<!-- end -->`` is
generated from that file of ``results``. ``<!-- table: FILE.csv; BEGINNING; ... -->`` keeps only rows whose
operation, shape, type and candidate begin with one of these. ``peers`` or ``options`` instead of ``table``
shows a quality file as shares of one method's KL.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from harness import LIMIT, OURS, RESULTS, Row, read_csv
from tables import TABLES, markdown, subject

ROOT = Path(__file__).parent.parent
PLOTTED = "GPTQ of a layer"
REGION = re.compile(
    r"(?P<marker><!-- (?P<view>table|peers|options): "
    r"(?P<file>[^;\s]+\.csv)(?P<beginnings>(?:; [^;\n]+)*) -->\n)"
    r"(?P<body>.*?)(?P<end><!-- end -->)",
    re.DOTALL,
)


def documents() -> list[Path]:
    """Return every Markdown file that may hold tables."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def made_again(text: str, only: Path | None = None) -> str:
    """Return a document with its tables regenerated, or only those of one file."""

    def made(region: re.Match[str]) -> str:
        file = RESULTS / region["file"]
        if only is not None and file.name != only.name:
            return region[0]
        beginnings = region["beginnings"].split("; ")[1:]
        tables = markdown(file, beginnings, region["view"])
        return f"{region['marker']}\n{tables}\n\n{region['end']}"

    return REGION.sub(made, text)


def check() -> int:
    """Name the documents whose tables differ from the results; return 1 if there are any."""
    texts = {file: file.read_text(encoding="utf-8") for file in documents()}
    stale = [file for file, text in texts.items() if made_again(text) != text]
    for file in stale:
        name = file.relative_to(ROOT)
        print(
            f"{name}: a table differs from benchmarks/results; run benchmarks/report.py with its file"
        )
    return 1 if stale else 0


def update_documents(file: Path) -> None:
    """Regenerate the tables of one result file in all documents.

    Raises
    ------
    ValueError
        If no document has a region for the file.
    """
    found = False
    for document in documents():
        text = document.read_text(encoding="utf-8")
        found |= any(region["file"] == file.name for region in REGION.finditer(text))
        document.write_text(made_again(text, file), encoding="utf-8")
    if not found:
        raise ValueError(f"{file.name}: expected a region <!-- table: {file.name} -->, found none")


def shortfalls(rows: list[Row]) -> list[str]:
    """Describe each row that misses its target, with its share and the target."""
    return [
        f"{row.op} {row.shape} {row.dtype}: {row.who} at {row.share:.3g} of {row.against}, "
        f"target {row.target[:2]} {row.target[2:]}"
        for row in rows
        if row.falls_short
    ]


def plot(file: Path, rows: list[Row]) -> Path | None:
    """Plot time against K of square layers, a line for each candidate, dashed for a limit."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        square = re.fullmatch(r"(\d+) x \1", row.shape)
        if row.op == PLOTTED and square:
            lines.setdefault(row.who, []).append((int(square[1]), row.seconds))
    if not lines:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

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


def report(file: Path, *, docs: bool) -> int:
    """Print a file's table and its missed targets, draw the plot, update the documents.

    Returns 1 if a target is missed.
    """
    print(markdown(file))
    if docs:
        update_documents(file)
    kind = TABLES[subject(file)].kind
    if kind is not Row:
        return 0
    _, rows = read_csv(file, kind)
    plot(file, rows)
    missed = shortfalls(rows)
    print(f"\n{len(missed)} of {sum(bool(row.target) for row in rows)} targets missed")
    print("\n".join(missed))
    return 1 if missed else 0


def parser(description: str) -> argparse.ArgumentParser:
    """Return a script's argument parser, with the common option `--docs`."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--docs", action="store_true", help="put the tables into the documents")
    return made


def main() -> int:
    """Report on files, or check the documents."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = arguments.add_mutually_exclusive_group(required=True)
    which.add_argument("files", nargs="*", type=Path, default=[], metavar="FILE.csv")
    which.add_argument("--check", action="store_true", help="only compare")
    options = arguments.parse_args()
    if options.check:
        return check()
    return max(report(file, docs=True) for file in options.files)


if __name__ == "__main__":
    sys.exit(main())
