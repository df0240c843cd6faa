"""Markdown tables generated only from the CSV files of the benchmarks.

`markdown` selects the table by the first word of a file's name. The caption states machine, date,
command and versions. Needs neither the peers nor a GPU, so that the tests can regenerate every table.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from device_rows import DeviceRow, devices_body
from harness import LIMIT, OURS, Row, read_csv
from quality_tables import VIEWS, QualityRow, least_in_bold, quality_body, tried_body
from run_rows import RunRow, runs_body

from numbacalib.quantizer.report import table

ORIGINAL = "original"
"""Method of the unquantized model's rows in `CodebookRow` and `DemoRow`."""
KMEANS_PEER = "scikit-learn, row by row"
KMEANS_PROCESSES = "scikit-learn, a process a core"
ERROR = "error "
"""Prefix of the notes of k-means."""


class DemoRow(NamedTuple):
    """One model of ``numbacalib demo``, as in the CSV; NaN where the demo prints a dash."""

    model: str
    perplexity: float
    bits_a_weight: float
    megabytes: float
    """Of the quantized layers."""


class CodebookRow(NamedTuple):
    """One model by one method, as in the CSV."""

    model: str
    bits: int
    method: str
    stored_bits: float
    """Bits per weight of the quantized layers, scales, zero points and codebooks included."""
    kl: float
    """Mean over the predicted tokens of KL(original || quantized), nats."""
    kl_error: float
    """Standard error of `kl`, from the means of the sequences."""
    perplexity: float
    output_error: float
    """Mean over the layers of trace(D H D^T) / trace(W H W^T)."""
    cpu_seconds: float
    """CPU time of quantizing, on all threads; the first of a kind includes compilation, the pass over the
    calibration text and gradients."""


class OnnxRow(NamedTuple):
    """One ONNX model by one method, as in the CSV."""

    model: str
    bits: int
    method: str
    error: float
    """Frobenius norm of the difference from the float output, as a share of that output's."""
    seconds: float
    """Of quantizing, calibration included."""
    megabytes: float
    """Of the file."""


class ProxyRow(NamedTuple):
    """Losses of all layers of a model by one setting, as in the CSV."""

    model: str
    bits: int
    setting: str
    peer: str
    layers: int
    ours: float
    """Mean over the layers of loss / loss of RTN."""
    theirs: float
    ratio: float
    """Geometric mean over the layers of our loss / theirs."""
    ratio_error: float
    """Its standard error."""
    least: float
    """Ratio of the layer where ours is best; `largest` is that of the layer where it is worst."""
    largest: float

    @property
    def worse(self) -> bool:
        """True if ours is worse beyond noise."""
        return self.ratio - 1 > 3 * self.ratio_error


class GgufRow(NamedTuple):
    """Scores of a GGUF file by llama.cpp, as in the CSV."""

    mix: str
    who: str
    megabytes: float
    perplexity: float
    kl: float
    """From the original, nats per token."""
    kl_error: float
    """Its standard error over sequences."""


class Table(NamedTuple):
    """Table of the files of one benchmark."""

    script: str
    """Script that wrote the file."""
    kind: type
    body: Callable[[list[Any]], str]


def markdown(file: Path, beginnings: Sequence[str] = (), view: str = "table") -> str:
    """Return caption and table of a file.

    Parameters
    ----------
    file : Path
    beginnings : sequence of str
        Keep the rows that begin with one of these, as ``"<op> <shape> <dtype> <who>"``, a file's first four
        columns; all by default.
    view : str
        A key of `VIEWS` for another table of a quality file.

    Raises
    ------
    ValueError
        If no row begins with one of them.
    """
    kind = TABLES[subject(file)]
    machine, rows = read_csv(file, kind.kind)
    for beginning in beginnings:
        if not any(_title(row).startswith(beginning) for row in rows):
            raise ValueError(
                f"{file.name}: expected rows that begin with {beginning!r}, found none"
            )
    kept = [row for row in rows if not beginnings or _title(row).startswith(tuple(beginnings))]
    body = VIEWS.get(view, kind.body)
    return f"{caption(machine, kind.script)}\n\n{body(kept)}"


def subject(file: Path) -> str:
    """Return the first word of a file's name, a key of `TABLES`."""
    return file.name.split("-")[0]


def caption(machine: dict[str, str], script: str) -> str:
    """Return machine, date, command, amounts of data, and versions."""
    measured_on = "".join(
        f"{machine[fact]}; "
        for fact in ("calibration", "evaluation", "duration")
        if fact in machine
    )
    return (
        f"{machine['machine']}, {machine['cores']} cores, {machine['date']}, "
        f"`python benchmarks/{script}`; {measured_on}{machine['versions']}."
    )


def _title(row: Any) -> str:
    return " ".join(map(str, row[:4]))


def speed_body(rows: list[Row]) -> str:
    """Return one line per case: our figure, its share of the limit or the peer, and the peers' times.

    A case without our figure has only the times.
    """
    lines = [
        "| work | shape | type | numbacalib | share, target | others |",
        "|---|---|---|---|---|---|",
    ]
    cases: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        cases.setdefault((row.op, row.shape, row.dtype), []).append(row)
    for (op, shape, dtype), candidates in cases.items():
        others = [row for row in candidates if not row.who.startswith((OURS, LIMIT))]
        ours = [row for row in candidates if row.who.startswith(OURS)]
        times = ", ".join(f"{other.who} {_figure_of(other)}" for other in others)
        if others and not ours:
            lines.append(f"| {op} | {shape} | {dtype} |  |  | {times} |")
        for row in ours:
            variant = row.who.removeprefix(OURS)
            cells = (f"{op}{variant}", shape, dtype, _figure(row), _share(row), times)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _figure_of(other: Row) -> str:
    """Return a peer's time, or its figure if that is not a time."""
    return (
        f"{other.rate:.3g} {other.unit}" if math.isnan(other.seconds) else _seconds(other.seconds)
    )


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


def kmeans_body(rows: list[Row]) -> str:
    """Return one line per shape: times of a row, our speedup, and the peer's excess error."""
    lines = []
    for shape, case in groupby(rows, key=lambda row: row.shape):
        found = {row.who: row for row in case}
        ours = found[OURS]
        excess = _error(found[KMEANS_PEER]) / _error(ours) - 1
        lines.append(
            [
                shape,
                *(f"{1e6 * row.seconds:.3g} us" for row in found.values()),
                f"{ours.share:.0f}{' (short)' if ours.falls_short else ''}",
                f"{found[KMEANS_PROCESSES].seconds / ours.seconds:.0f}",
                f"{100 * excess:.1f} %",
            ]
        )
    mean = statistics.geometric_mean([row.share for row in rows if row.who == OURS])
    header = [
        "a row of",
        OURS,
        KMEANS_PEER,
        KMEANS_PROCESSES,
        "times the faster row by row",
        "than processes",
        "its error above ours",
    ]
    return f"{table(header, lines)}\n\nTimes faster row by row in the geometric mean: {mean:.0f}."


def _error(row: Row) -> float:
    return float(row.note.removeprefix(ERROR))


def codebooks_body(rows: list[CodebookRow]) -> str:
    """Return one table per model, the least of each column in bold."""
    parts = []
    for model, group in groupby(rows, key=lambda row: row.model):
        found = {(row.method, row.bits): row for row in group}
        widths = sorted({row.bits for row in found.values()}, reverse=True)
        first = found[ORIGINAL, widths[0]]
        methods = dict.fromkeys(method for method, _ in found if method != ORIGINAL)
        rivals = {
            bits: [found[method, bits] for method in methods if (method, bits) in found]
            for bits in widths
        }
        header = [f"{model}, perplexity {first.perplexity:.2f}", "bits a weight"]
        header += [f"{kind}, {bits} bits" for bits in widths for kind in ("KL", "perplexity")]
        lines = []
        for method in methods:
            of_method = [found[method, bits] for bits in widths if (method, bits) in found]
            cells = [" / ".join(f"{row.stored_bits:.2f}" for row in of_method)]
            for row in of_method:
                others = rivals[row.bits]
                cells.append(least_in_bold(row.kl, min(r.kl for r in others), 4))
                least = min(r.perplexity for r in others)
                cells.append(least_in_bold(row.perplexity, least, 2))
            lines.append([method, *cells])
        parts.append(table(header, lines))
    return "\n\n".join(parts)


def proxy_body(rows: list[ProxyRow]) -> str:
    """Return one table per model: losses over RTN's, and our loss over the peer's."""
    parts = []
    for model, group in groupby(rows, key=lambda row: row.model):
        of_model = list(group)
        settings = list(dict.fromkeys(row.setting for row in of_model))
        header = [model, "bits", "numbacalib", "peer", "ratio", "layer by layer"]
        lines = [
            [
                f"{row.setting}, {row.peer}",
                str(row.bits),
                f"{row.ours:.4f}",
                f"{row.theirs:.4f}",
                f"{row.ratio:.4f} ± {row.ratio_error:.4f}",
                f"{row.least:.3f} to {row.largest:.3f}",
            ]
            for row in sorted(of_model, key=lambda row: (settings.index(row.setting), -row.bits))
        ]
        parts.append(table(header, lines))
    return "\n\n".join(parts)


def onnx_body(rows: list[OnnxRow]) -> str:
    """Return one table per model: errors and seconds by width, the least error of each in bold."""
    parts = []
    for model, group in groupby(rows, key=lambda row: row.model):
        found = {(row.method, row.bits): row for row in group}
        widths = sorted({bits for _, bits in found}, reverse=True)
        least = {
            bits: min(row.error for row in found.values() if row.bits == bits) for bits in widths
        }
        header = [f"{model}, error"]
        header += [f"{bits} bits" for bits in widths] + [f"s, {bits} bits" for bits in widths]
        lines = []
        for method in dict.fromkeys(method for method, _ in found):
            own = [found.get((method, bits)) for bits in widths]
            errors = [
                "-" if row is None else least_in_bold(row.error, least[row.bits], 4) for row in own
            ]
            seconds = ["-" if row is None else f"{row.seconds:.1f}" for row in own]
            lines.append([method, *errors, *seconds])
        parts.append(table(header, lines))
    return "\n\n".join(parts)


def gguf_body(rows: list[GgufRow]) -> str:
    """Return one table of all files, the least KL of each mix in bold."""
    least = {row.mix: min(other.kl for other in rows if other.mix == row.mix) for row in rows}
    lines = [
        [
            row.mix,
            row.who,
            f"{row.megabytes:.2f}",
            f"{row.perplexity:.3f}",
            f"{least_in_bold(row.kl, least[row.mix], 5)} ± {row.kl_error:.5f}",
        ]
        for row in rows
    ]
    return table(["type", "by", "MB", "perplexity", "KL"], lines)


def demo_body(rows: list[DemoRow]) -> str:
    """Return the table that the demo prints."""
    header = ["SmolLM2-135M-Instruct", "perplexity", "bits a weight", "MB of layers"]
    lines = [
        [
            row.model,
            f"{row.perplexity:.3f}",
            "-" if math.isnan(row.bits_a_weight) else f"{row.bits_a_weight:.2f}",
            "-" if math.isnan(row.megabytes) else f"{row.megabytes:.1f}",
        ]
        for row in rows
    ]
    return table(header, lines)


class ExpertsRow(NamedTuple):
    """A figure of `experts.py`, in words."""

    what: str
    case: str
    figure: str
    part: str = ""


def experts_body(rows: list[ExpertsRow]) -> str:
    """Return one line per figure."""
    return table(["what", "case", "figure"], [row[:3] for row in rows])


TABLES = {
    "attention": Table("attention_gpu.py", Row, speed_body),
    "awq": Table("awq_gpu.py", Row, speed_body),
    "codebooks": Table("codebooks.py", CodebookRow, codebooks_body),
    "cpu": Table("cpu.py", Row, speed_body),
    "devices": Table("devices_gpu.py", DeviceRow, devices_body),
    "demo": Table("demo.py", DemoRow, demo_body),
    "experts": Table("experts.py", ExpertsRow, experts_body),
    "fisher": Table("fisher_gpu.py", Row, speed_body),
    "forward": Table("forward_gpu.py", Row, speed_body),
    "gguf": Table("gguf_quality.py", GgufRow, gguf_body),
    "gptq": Table("gptq_gpu.py", Row, speed_body),
    "hessian": Table("hessian_gpu.py", Row, speed_body),
    "kmeans": Table("kmeans.py", Row, kmeans_body),
    "model": Table("model_gpu.py", Row, speed_body),
    "onnx": Table("onnx_models.py", OnnxRow, onnx_body),
    "proxy": Table("proxy.py", ProxyRow, proxy_body),
    "quality": Table("quality.py", QualityRow, quality_body),
    "tried": Table("quality.py", QualityRow, tried_body),
    "runs": Table("runs.py", RunRow, runs_body),
    "text": Table("text.py", Row, speed_body),
}
