"""Rows and tables of `quality.py`: quality of whole models by method."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

from numbacalib.quantizer.report import table


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
    for (model, bits, symmetric), group in groupby(rows, key=lambda row: row[:3]):
        of_grid = list(group)
        found = {(row.method, row.text): row for row in of_grid}
        least = {
            (kind, text): min(getattr(row, kind) for row in of_grid if row.text == text)
            for kind in ("nats", "kl")
            for text in texts
        }
        header = [f"{model}, {bits} bits {'symmetric' if symmetric else 'asymmetric'}"]
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
    for (model, bits, symmetric), group in groupby(rows, key=lambda row: row[:3]):
        found = {(row.method, row.text): row for row in group}
        methods = list(dict.fromkeys(method for method, _ in found))
        header = [f"{model}, {bits} bits {'symmetric' if symmetric else 'asymmetric'}"]
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


def least_in_bold(value: float, least: float, digits: int) -> str:
    text = f"{value:.{digits}f}" if value < 1000 else f"{value:.0f}"
    return f"**{text}**" if value == least else text
