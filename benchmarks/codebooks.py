"""Quality of each method on whole models: KL to the original and perplexity at 4, 3 and 2 bits.

    python benchmarks/codebooks.py [--model NAME] [--resume] [--docs]

Each model's layers are quantized by every method from the same statistics, which one pass over the
calibration text collects, and the model runs on the evaluation text. Only the row "block by block" runs
the text again, through the blocks quantized so far, as `numbacalib quantize` does. Scales and centroids
are float16, and count in the bits per weight; AWQ's channel scales cost none, since only those are
used that fold into an earlier norm or linear layer. Fisher information comes from torch's gradients.

Rows are written one by one to ``results/codebooks-<machine>.csv``; `--resume` keeps existing rows, of the
other model too, and measures the missing ones. Needs the extra `benchmarks`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from harness import csv_file, describe_machine, known, read_csv, write_csv
from numpy.typing import NDArray
from report import parser, report
from small_models import SUBJECTS, TOKENS, Subject
from tables import ORIGINAL, CodebookRow

from numbacalib.methods import (
    CodebookWeight,
    LayerSettings,
    QuantizedWeight,
    awq_scales,
    codebook,
    quantize_layer,
)
from numbacalib.models import Decoder
from numbacalib.quantizer import evaluation
from numbacalib.quantizer.calibration import Calibration, Stage, TextCalibration
from numbacalib.statistics import InputStatistics

PACKAGES = ("numba", "numpy", "scipy", "torch", "transformers")
BITS = (4, 3, 2)
SCALE_BITS = 16

Quantized = QuantizedWeight | CodebookWeight
Solver = Callable[[Subject, str, NDArray, InputStatistics, int], Quantized]


class Method(NamedTuple):
    """Method of quantizing the layers of a model."""

    solve: Solver
    awq: bool = False
    """True if input channels are scaled first."""
    block_by_block: bool = False
    """True if statistics are of inputs from the already quantized layers."""


def uniform(**settings: Any) -> Solver:
    """Quantize to scales and zero points of groups; `settings` are those of `LayerSettings`."""

    def solve(
        subject: Subject, name: str, weight: NDArray, statistics: InputStatistics, bits: int
    ) -> Quantized:
        size = subject.group_size(weight.shape[1])
        layer = LayerSettings(bits=bits, group_size=size, **settings)
        return quantize_layer(name, weight, statistics, layer)[0]

    return solve


def clustered(importance: Callable[[Subject, str, InputStatistics], NDArray]) -> Solver:
    """Quantize to a codebook of float16 centroids for each row."""

    def solve(
        subject: Subject, name: str, weight: NDArray, statistics: InputStatistics, bits: int
    ) -> CodebookWeight:
        found = codebook(weight, bits=bits, importance=importance(subject, name, statistics))
        stored = found.centroids.astype(np.float16).astype(np.float32)
        return CodebookWeight(found.codes, stored, bits)

    return solve


def fisher(subject: Subject, name: str, statistics: InputStatistics) -> NDArray:
    """Fisher information of a layer's weights, [M, K]."""
    from gradients import fisher_of_linears

    del statistics
    return fisher_of_linears(subject)[name]


def mean_square(subject: Subject, name: str, statistics: InputStatistics) -> NDArray:
    """Mean square of a layer's input channels, [K]."""
    del subject, name
    return np.asarray(statistics.mean_square)


BY_IMATRIX: dict[str, Any] = {"ranges": "weighted", "range_norm": 2.4}
ORDERED: dict[str, Any] = {"act_order": "desc", "static_groups": True}


METHODS = {
    "RTN": Method(uniform(method="rtn")),
    "RTN, ranges by imatrix": Method(uniform(method="rtn", **BY_IMATRIX)),
    "AWQ, scales": Method(uniform(method="rtn"), awq=True),
    "AWQ, scales and clipping": Method(uniform(method="rtn", ranges="clip"), awq=True),
    "GPTQ": Method(uniform()),
    "GPTQ, order desc": Method(uniform(**ORDERED)),
    "GPTQ, order group_aware": Method(uniform(act_order="group_aware")),
    "GPTQ, desc, ranges by MSE": Method(uniform(**ORDERED, ranges="mse", range_norm=2.4)),
    "GPTQ, desc, ranges by imatrix": Method(uniform(**ORDERED, **BY_IMATRIX)),
    "AWQ scales, GPTQ, desc": Method(uniform(**ORDERED), awq=True),
    "GPTQ, desc, block by block": Method(uniform(**ORDERED), block_by_block=True),
    "k-means, imatrix": Method(clustered(mean_square)),
    "k-means, Fisher": Method(clustered(fisher)),
}


class Outcome(NamedTuple):
    """A model's linear layers, quantized."""

    weights: dict[str, NDArray]
    """Dequantized weights, by full tensor name."""
    stored_bits: float
    output_error: float


def quantize(subject: Subject, method: Method, bits: int) -> Outcome:
    """Quantize every layer of a model's blocks."""
    scales = channel_scales(subject, bits) if method.awq else {}
    calibration: Calibration
    if method.block_by_block:
        calibration = TextCalibration(subject.decoder, subject.calibration_tokens)
    else:
        calibration = subject.calibration
    weights: dict[str, NDArray] = {}
    stored, errors = 0.0, []
    for index in range(subject.decoder.config.num_layers):
        block = subject.decoder.block(index)
        for stage, statistics in chain.from_iterable(calibration.stages(index, block, {})):
            assert isinstance(statistics, InputStatistics)  # these models have no experts
            s = scales.get((index, stage), np.ones(len(statistics.hessian), np.float32))
            divided = statistics.divided(s)
            for kind in stage:
                name, weight = f"model.layers.{index}.{kind}", block.linears[kind]
                found = method.solve(subject, name, weight * s, divided, bits)
                values = found.dequantize() / s
                errors.append(output_error(weight, values, statistics.hessian))
                stored += stored_bits(found)
                weights[f"{name}.weight"] = block.linears[kind] = values
    size = sum(values.size for values in weights.values())
    return Outcome(weights, stored / size, float(np.mean(errors)))


@cache
def channel_scales(subject: Subject, bits: int) -> dict[tuple[int, Stage], NDArray]:
    """AWQ's scales of the stages with a producer that can absorb them."""
    found = {}
    for index in range(subject.decoder.config.num_layers):
        block = subject.decoder.block(index)
        for stage, statistics in subject.calibration.preview(index, block):
            if block.producer(stage):
                scales = awq_scales(
                    [block.linears[kind] for kind in stage],
                    statistics.hessian,
                    statistics.mean_abs,
                    bits=bits,
                    group_size=subject.group_size(len(statistics.hessian)),
                ).scales
                found[index, stage] = np.asarray(scales)
    return found


def output_error(weight: NDArray, values: NDArray, hessian: NDArray) -> float:
    """Squared error of a layer's outputs as a share of their squares."""
    difference = weight - values
    return float(np.vdot(difference @ hessian, difference) / np.vdot(weight @ hessian, weight))


def stored_bits(found: Quantized) -> int:
    """Stored bits of a layer: codes with their scales and zeros, or centroids."""
    if isinstance(found, CodebookWeight):
        return found.codes.size * found.bits + found.centroids.size * SCALE_BITS
    return (found.codes.size + found.zeros.size) * found.bits + found.scales.size * SCALE_BITS


def measure(subject: Subject, name: str, bits: int) -> CodebookRow:
    """Quantize by one method and evaluate."""
    original = evaluation.Subject(subject.name, subject.checkpoint, subject.decoder)
    if name == ORIGINAL:
        found = evaluation.measure(subject.evaluation_tokens, original)
        return CodebookRow(subject.name, bits, name, bits, 0.0, 0.0, found.perplexity, 0.0, 0.0)
    begin = time.process_time()
    outcome = quantize(subject, METHODS[name], bits)
    seconds = time.process_time() - begin
    decoder = Decoder(subject.checkpoint, outcome.weights.__getitem__)
    quantized = original._replace(decoder=decoder)
    found = evaluation.measure(subject.evaluation_tokens, quantized, original)
    figures = known(found.kl), known(found.kl_error), found.perplexity, outcome.output_error
    return CodebookRow(subject.name, bits, name, outcome.stored_bits, *figures, seconds)


def machine_facts() -> dict[str, str]:
    """Facts of the machine and the experiment for the table's caption."""
    return describe_machine(
        *PACKAGES,
        calibration=f"{TOKENS[0]} tokens of calibration",
        evaluation=f"{TOKENS[1]} tokens of evaluation",
    )


def main() -> int:
    """Measure the missing rows, write the CSV and print the tables."""
    arguments = parser(__doc__)
    arguments.add_argument("--model", choices=SUBJECTS, help="only this one")
    arguments.add_argument("--resume", action="store_true", help="keep existing rows")
    options = arguments.parse_args()
    machine = machine_facts()
    file = csv_file("codebooks", machine)
    rows: list[CodebookRow] = []
    if options.resume and file.exists():
        machine, rows = read_csv(file, CodebookRow)
    begin = time.monotonic()
    for model in [options.model] if options.model else SUBJECTS:
        subject = SUBJECTS[model]()
        for bits in BITS:
            for name in (ORIGINAL, *METHODS):
                if any((r.model, r.bits, r.method) == (model, bits, name) for r in rows):
                    continue
                row = measure(subject, name, bits)
                rows.append(row)
                write_csv("codebooks", machine, rows)
                print(
                    f"{time.monotonic() - begin:5.0f} s  {model} {bits} bits {name}: KL "
                    f"{row.kl:.4f} +- {row.kl_error:.4f}, perplexity {row.perplexity:.2f}, output error "
                    f"{row.output_error:.3g}, {row.cpu_seconds:.1f} s of CPU",
                    flush=True,
                )
    rows.sort(key=lambda row: list(SUBJECTS).index(row.model))
    return report(write_csv("codebooks", machine, rows), docs=options.docs)


if __name__ == "__main__":
    sys.exit(main())
