"""Report of a run: an object, JSON, a settings file for a later run, plain-text tables."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from numbacalib.formats.durable import write_whole
from numbacalib.methods import LayerReport
from numbacalib.quantizer.distributions import Histogram
from numbacalib.quantizer.evaluation import Evaluation
from numbacalib.quantizer.plan import Plan
from numbacalib.quantizer.preflight import in_units
from numbacalib.quantizer.proof import Proof
from numbacalib.runtime.notices import notices

_EXPERT = re.compile(r"\.experts\.\d+\.")

WORST = 5
"""Most layers that a summary names."""


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """Report of a run of `numbacalib.quantizer.quantize`."""

    version: str
    model: str
    revision: str | None
    """Commit of a model from the Hugging Face hub."""
    output: str
    device: str
    formats: list[str]
    settings: dict[str, Any]
    """By the names of `Settings`."""
    inputs: dict[str, Any]
    """Files of text, held-out text, statistics and importance."""
    layers: list[LayerReport]
    """In the order in which they ran."""
    original_bytes: int
    """Of the files that hold the model's tensors."""
    output_bytes: int
    """Of all tensors of the output, of the first format."""
    resumed_blocks: int
    """Blocks that a killed run had finished."""
    seconds: dict[str, float]
    """By phase, of this run."""
    begins: dict[str, float]
    """Seconds from the start at which phases began."""
    peak_bytes: int
    """Peak host memory of the process."""
    device_bytes: int
    """Peak device memory of the process; 0 on the host."""
    weights: Histogram
    """Of a sample of the quantized weights, divided by the root mean square of their layer's sample."""
    scales: Histogram
    plan: Plan
    """Plan of the run, with the expected sizes and times."""
    proofs: list[Proof]
    """Of the output in each format."""
    warnings: list[str]

    @property
    def bits_a_weight(self) -> float:
        """Of the quantized layers, scales and zero points included."""
        weights = sum(layer.shape[0] * layer.shape[1] for layer in self.layers)
        return 8 * sum(layer.stored_bytes or 0 for layer in self.layers) / weights

    @property
    def planned_seconds(self) -> float:
        """Seconds taken by the phases of the plan."""
        return sum(self.seconds[name] for name in self.plan.seconds)

    def as_json(self) -> str:
        """Return all of it as JSON, by the names of the attributes."""
        own = asdict(self) | {"bits_a_weight": self.bits_a_weight}
        return json.dumps(own, indent=2) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the JSON.

        Raises
        ------
        OSError
            If writing fails.
        """
        Path(path).write_text(self.as_json(), encoding="utf-8")

    def summary(self) -> str:
        """Return a summary for a terminal: sizes, time, the worst layers, the loss."""
        lines = [
            f"{self.bits_a_weight:.2f} bits a weight in {len(self.layers)} layers; "
            f"{self.original_bytes / 1e6:.1f} MB before, {self.output_bytes / 1e6:.1f} MB after; "
            f"{sum(self.seconds.values()):.1f} s",
            f"planned {sum(self.plan.seconds.values()):.1f} s and "
            f"{_memory(self.plan.peak_bytes, self.plan.device_bytes)}",
            f"took {self.planned_seconds:.1f} s and {_memory(self.peak_bytes, self.device_bytes)}",
        ]
        lines += worst_layers(self.layers)
        for proof in self.proofs[:1]:
            if proof.evaluation is not None:
                lines.append(f"held-out text: {evaluation_line(proof.evaluation)}")
        return "\n".join(lines)


def _memory(host: int, device: int) -> str:
    there = f" and {in_units(device)} on the device" if device else ""
    return f"{in_units(host)} of memory{there}"


def save_layers(path: str | Path, layers: Sequence[LayerReport]) -> None:
    """Write the reports of layers alone as JSON, in the form of `RunReport`.

    Raises
    ------
    OSError
        If writing fails.
    """
    found = {"layers": [asdict(layer) for layer in layers]}
    Path(path).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def evaluation_line(found: Evaluation) -> str:
    """Describe an evaluation, with the divergence on a line of its own."""
    line = f"perplexity {found.perplexity:.4f} over {found.tokens} tokens"
    if found.kl is not None:
        error = "" if found.kl_error is None else f" +- {found.kl_error:.2g}"
        line += f"\nKL to the original {found.kl:.4g}{error} nats a token"
    return line


def worst_layers(layers: Sequence[LayerReport]) -> list[str]:
    """Table of the layers whose method gained the least over rounding to the nearest; none if none has."""
    ratios = {
        layer.name: (layer.loss / layer.rtn_loss, layer)
        for layer in layers
        if layer.loss is not None and layer.rtn_loss
    }
    worst = sorted(ratios.values(), key=lambda pair: -pair[0])[:WORST]
    if not worst or all(layer.method == "rtn" for _, layer in worst):
        return []
    rows = [
        [layer.name, str(layer.bits), _number(layer.loss), _number(layer.rtn_loss), f"{ratio:.3f}"]
        for ratio, layer in worst
    ]
    return [table([f"worst of {len(layers)} layers", "bits", "loss", "RTN loss", "ratio"], rows)]


class Clock:
    """Seconds by phase.

    Attributes
    ----------
    seconds : dict of str to float
    begins : dict of str to float
        When each phase began, in seconds from the clock's own start.
    """

    def __init__(self) -> None:
        self._start = time.monotonic()
        self.seconds: dict[str, float] = {}
        self.begins: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the time that the ``with`` statement takes."""
        begin = time.monotonic()
        self.begins[name] = begin - self._start
        try:
            yield
        finally:
            self.seconds[name] = time.monotonic() - begin


@contextmanager
def recorded_warnings() -> Iterator[list[str]]:
    """Record the warnings of the package's log inside the ``with`` statement, except `notices`."""
    found: list[str] = []

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name != notices.name:
                found.append(record.getMessage())

    log, notes = logging.getLogger("numbacalib"), Notes(logging.WARNING)
    log.addHandler(notes)
    try:
        yield found
    finally:
        log.removeHandler(notes)


def write_config(path: Path, options: Mapping[str, Any]) -> None:
    """Write a settings file: options of the command line by name, in TOML, without those that are None.

    Raises
    ------
    OSError
        If writing fails.
    """
    lines = [
        f"{name} = {_toml(value)}\n" for name, value in options.items() if value not in (None, [])
    ]
    write_whole(path, lambda partial: partial.write_text("".join(lines), encoding="utf-8"))


def _toml(value: Any) -> str:
    """Format a value for TOML, whose strings, lists, numbers and booleans are JSON's; non-ASCII stays."""
    return json.dumps(value, ensure_ascii=False)


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
    """Table of the layers of a run: loss against round-to-nearest, and diagnostics.

    The experts of a block share a row for each of their layers, with a second table of the tokens that
    reached them.
    """
    experts: dict[str, list[LayerReport]] = {}
    rows = []
    for report in reports:
        name = _EXPERT.sub(".experts.*.", report.name)
        if name == report.name:
            rows.append(_row(report))
            continue
        if name not in experts:
            rows.append([name])  # filled in once all experts are known
        experts.setdefault(name, []).append(report)
    for row in rows:
        row[1:] = _row_of_experts(experts[row[0]]) if row[0] in experts else row[1:]
    header = ["layer", "M x K", "group", "loss", "RTN loss", "ratio", "tokens", "rank"]
    layers = table([*header, "percdamp", "least pivot", "clipped %", "seconds"], rows)
    return f"{layers}\n\n{expert_table(experts)}" if experts else layers


def expert_table(experts: Mapping[str, Sequence[LayerReport]]) -> str:
    """Table of the layers of experts, by the name that they share: tokens of each, and remedies."""
    rows = []
    for name, reports in experts.items():
        tokens = [report.tokens for report in reports if report.tokens is not None]
        counts = [min(tokens), round(median(tokens)), max(tokens)] if tokens else ["-"] * 3
        remedies = Counter(report.remedy for report in reports)
        found = tokens.count(0), remedies["shrinkage"], remedies["pooled"]
        rows.append([name, str(len(reports)), *map(str, (*counts, *found))])
    header = ["experts", "number", "least tokens", "median", "most", "without any"]
    return table([*header, "shrunk", "by all tokens"], rows)


def _row(report: LayerReport) -> list[str]:
    return [
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


def _row_of_experts(reports: Sequence[LayerReport]) -> list[str]:
    """Summarize experts: losses weighted by tokens, means of shares, minima of ranks and pivots."""
    first = reports[0]

    def known(name: str) -> list[Any]:
        values = (getattr(report, name) for report in reports)
        return [value for value in values if value is not None]

    def least(name: str) -> float | None:
        return min(known(name), default=None)

    weights = [report.tokens or 0 for report in reports]
    losses: list[float | None] = [None, None]
    if sum(weights) and len(known("loss")) == len(reports):
        losses = [np.average(known(name), weights=weights) for name in ("loss", "rtn_loss")]
    clipped = known("clipped")
    fell_back = sum(report.fell_back for report in reports)
    return [
        f"{len(reports)} x {first.shape[0]} x {first.shape[1]}",
        str(first.group_size),
        _number(losses[0]),
        _number(losses[1]),
        _ratio(*losses),
        str(sum(weights)) if known("tokens") else "-",
        _number(least("effective_rank")),
        _number(least("percdamp")) + (f" ({fell_back} with more)" if fell_back else ""),
        _number(least("smallest_pivot")),
        f"{100 * sum(clipped) / len(clipped):.2f}" if clipped else "-",
        f"{sum(known('seconds')):.2f}",
    ]


def require_writable(path: str | Path, output: str | Path) -> None:
    """Check that a report can be written, before the run that it will describe.

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
