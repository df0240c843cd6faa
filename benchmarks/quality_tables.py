"""Rows and tables of `quality.py`: quality of whole models by method."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from math import inf
from typing import NamedTuple

from numbacalib.quantizer.report import table

DEFAULT = "GPTQ, default"
BESIDE_PEERS = (DEFAULT, "GPTQ, weighted", "AWQ")
PEER = "llm-compressor"
AIMS = {(3, False): 1 / 2, (4, True): 2 / 3}
"""Shares of plain GPTQ's KL that the default should leave at most, by bits and symmetry."""


class QualityRow(NamedTuple):
    """A model by one method on one text, as in the CSV."""

    model: str
    bits: int
    symmetric: bool
    method: str
    text: str
    """Kind of the evaluation text."""
    nats: float
    """Loss above the original's, per token."""
    nats_error: float
    """Its standard error over sequences, paired."""
    kl: float
    """From the original, nats per token."""
    kl_error: float
    perplexity: float
    stored_bits: float
    """Bits per weight of all quantized layers; NaN for llm-compressor, whose output is not written."""
    seconds: float
    """Of the whole command, from files to files; for llm-compressor, of its `oneshot` alone."""


def quality_body(rows: list[QualityRow]) -> str:
    """Return one table per model and grid, the least of each column in bold."""
    parts = []
    texts = list(dict.fromkeys(row.text for row in rows))
    for grid, group in groupby(rows, key=lambda row: row[:3]):
        of_grid = list(group)
        found = {(row.method, row.text): row for row in of_grid}
        least = {
            (kind, text): min(getattr(row, kind) for row in of_grid if row.text == text)
            for kind in ("nats", "kl")
            for text in texts
        }
        header = [grid_title(*grid)]
        header += [f"{kind}, {text}" for text in texts for kind in ("nats", "KL")] + ["seconds"]
        lines = []
        for method in dict.fromkeys(row.method for row in of_grid):
            cells = []
            for text in texts:
                row = found[method, text]
                for kind, error in (("nats", row.nats_error), ("kl", row.kl_error)):
                    value = least_in_bold(getattr(row, kind), least[kind, text], 4)
                    cells.append(f"{value} ± {error:.4f}")
            lines.append([method, *cells, f"{found[method, texts[0]].seconds:.1f}"])
        parts.append(table(header, lines))
    return "\n\n".join(parts)


def tried_body(rows: list[QualityRow]) -> str:
    """Return one table per model and grid: KL, and its share of the first row's."""
    parts = []
    texts = list(dict.fromkeys(row.text for row in rows))
    for grid, group in groupby(rows, key=lambda row: row[:3]):
        found = {(row.method, row.text): row for row in group}
        methods = list(dict.fromkeys(method for method, _ in found))
        header = [grid_title(*grid)]
        header += [f"{what}, {text}" for text in texts for what in ("KL", "of the first")]
        lines = []
        for method in methods:
            cells = []
            for text in texts:
                row, first = found[method, text], found[methods[0], text]
                cells += [f"{row.kl:.4f} ± {row.kl_error:.4f}", f"{row.kl / first.kl:.2f}"]
            lines.append([method, *cells])
        parts.append(table(header, lines))
    return "\n\n".join(parts)


def peers_body(rows: list[QualityRow]) -> str:
    """Return KL by methods of ours and of peers as shares of plain GPTQ's, a line per model and grid."""
    peers = (row.method for row in rows if row.method.startswith(PEER))
    return shares_body(rows, "GPTQ", [*BESIDE_PEERS, *peers], AIMS)


def options_body(rows: list[QualityRow]) -> str:
    """Return KL by changes of the default as shares of the default's, a line per model and grid."""
    methods = (row.method for row in rows)
    others = [each for each in methods if each.startswith(("default, ", f"{DEFAULT}, "))]
    return shares_body(rows, DEFAULT, others, {})


def shares_body(
    rows: list[QualityRow],
    first: str,
    others: Iterable[str],
    aims: dict[tuple[int, bool], float],
) -> str:
    """Return KL by a first method, and by others as shares of it, the texts side by side.

    Parameters
    ----------
    rows : list of QualityRow
    first : str
        Models and grids without it have no line.
    others : iterable of str
        Columns; models and grids without any of them have no line.
    aims : dict
        The largest share that the default should leave, by bits and symmetry; a larger one is marked.
    """
    texts = list(dict.fromkeys(row.text for row in rows))
    columns = list(dict.fromkeys(others))
    lines = []
    for grid, group in groupby(rows, key=lambda row: row[:3]):
        found = {(row.method, row.text): row.kl for row in group}
        measured = {method for method, _ in found}
        if first not in measured or measured.isdisjoint(columns):
            continue
        cells = [" / ".join(f"{found[first, text]:.4f}" for text in texts)]
        for method in columns:
            shares = [
                found[method, text] / found[first, text] for text in texts if method in measured
            ]
            missed = method == DEFAULT and max(shares, default=0) > aims.get(grid[1:], inf)
            cell = " / ".join(f"{share:.2f}" for share in shares)
            cells.append(f"{cell} (short)" if missed else cell)
        lines.append([grid_title(*grid), *cells])
    return table([f"KL, {' / '.join(texts)}", first, *columns], lines)


def grid_title(model: str, bits: int, symmetric: bool) -> str:
    return f"{model}, {bits} bits {'symmetric' if symmetric else 'asymmetric'}"


def least_in_bold(value: float, least: float, digits: int) -> str:
    text = f"{value:.{digits}f}" if value < 1000 else f"{value:.0f}"
    return f"**{text}**" if value == least else text


VIEWS = {"peers": peers_body, "options": options_body}
"""Other tables of the same rows, by the first word of a document's marker."""
