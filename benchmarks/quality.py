"""Quality of whole models by our methods and llm-compressor's, from the same token ids on one grid.

    python benchmarks/quality.py --device cuda [--model NAME ...] [--grid 4s ...] [--method PATTERN ...]

Each row is a run of `numbacalib.quantize` from files to files, or of llm-compressor's `oneshot`, evaluated
by us on two texts of different kinds: loss above the original's and KL from it, in nats per token, with
standard errors over sequences, paired. Models are kept in `--models`: SmolLM2-135M and glassllm come from
wheels of PyPI, two are trained here the first time. Rows are written one by one; `--resume` keeps the rows
of an existing CSV. Needs torch and transformers for training and the peer.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from harness import RESULTS, csv_file, describe_machine, known, read_csv, write_csv
from quality_tables import QualityRow, quality_body
from small_models import checkpoint_of_glassllm, checkpoint_of_smollm2
from texts import KINDS, Texts, read_texts

from numbacalib.models import DecoderBlock, open_place
from numbacalib.quantizer import quantize
from numbacalib.quantizer.calibration import Group, TextCalibration
from numbacalib.quantizer.evaluation import Subject, measure_texts
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
    """Lengths and layers with which a model is measured."""

    length: int
    """Tokens of a sequence."""
    group_size: int
    skip: tuple[str, ...] = ()
    """Patterns of layers that stay unquantized, with llm-compressor too."""


WHOLE = {
    "llama": Model(512, 64),
    "gemma3_text": Model(512, 64),
    "glassllm": Model(128, 32, ("*.down_proj",)),  # no group length divides their K = 341
    "SmolLM2-135M": Model(512, 64),
}
BLOCKS = 30
"""Of SmolLM2-135M."""
MODELS = WHOLE | {
    f"SmolLM2-135M, {blocks} blocks": Model(
        512, 64, tuple(f"*.layers.{later}.*" for later in range(blocks, BLOCKS))
    )
    for blocks in (4, 8, 16)
}
"""Whole models, and one of which only the first blocks are quantized: errors add up from block to block."""
FULL: dict[str, Any] = {
    "ranges": "full",
    "full_range": False,
    "target": "layerwise",
    "refit": False,
    "passes": 0,
    "shrinkage": 0.0,
    "own_text": 0.0,
}
AWQ: dict[str, Any] = {"channel_scales": "awq"}
WEIGHTED: dict[str, Any] = {"ranges": "weighted"}
SIGNED: dict[str, Any] = {"full_range": True}
REFIT: dict[str, Any] = {"refit": True}
PASSES: dict[str, Any] = {"passes": 3}
SHRUNK: dict[str, Any] = {"shrinkage": 0.1}


def _propagated(strength: float) -> dict[str, Any]:
    return {"target": "propagated", "target_strength": strength}


WHOLE_BLOCKS: dict[str, Any] = {"whole_blocks": True}
"""Statistics as llm-compressor has them: see `stages_of_whole_blocks`."""
NEAR = 0.0099, 0.0101
"""Dampings that differ from the default by so little that what changes is rounding."""
STRENGTHS = 0.25, 0.375, 0.5, 0.75, 1.0
METHODS: dict[str, dict[str, Any]] = {
    "RTN": {"method": "rtn"},
    "RTN, full range": {"method": "rtn"} | SIGNED,
    "AWQ": AWQ | {"method": "rtn", "ranges": "clip", "own_text": 0.0},
    "GPTQ": FULL,
    "GPTQ, default": {},
    "GPTQ, whole blocks": FULL | WHOLE_BLOCKS,
    **{f"GPTQ, percdamp {x:g}": FULL | {"percdamp": x} for x in NEAR},
    **{f"GPTQ, whole blocks, percdamp {x:g}": FULL | WHOLE_BLOCKS | {"percdamp": x} for x in NEAR},
    "GPTQ, full range": FULL | SIGNED,
    "GPTQ, ranges mse": FULL | {"ranges": "mse"},
    "GPTQ, weighted": FULL | WEIGHTED,
    "GPTQ, weighted, full range": FULL | WEIGHTED | SIGNED,
    "GPTQ, weighted, refit": FULL | WEIGHTED | REFIT,
    "GPTQ, refit": FULL | REFIT,
    "GPTQ, AWQ scales": FULL | AWQ,
    **{f"GPTQ, propagated {share:g}": FULL | _propagated(share) for share in STRENGTHS},
    **{
        f"GPTQ, weighted, propagated {share:g}{name}": FULL | WEIGHTED | _propagated(share) | option
        for share in STRENGTHS
        for name, option in {
            "": {},
            ", refit": REFIT,
            ", AWQ scales": AWQ,
            ", full range": SIGNED,
            ", full range, refit": SIGNED | REFIT,
        }.items()
    },
    "GPTQ, weighted, shrinkage 0.1": FULL | WEIGHTED | SHRUNK,
    "GPTQ, weighted, 3 passes": FULL | WEIGHTED | PASSES,
    "GPTQ, weighted, 3 passes, refit, shrinkage 0.1": FULL | WEIGHTED | PASSES | REFIT | SHRUNK,
    **{
        f"default, {'no' if not x else f'{x:g} of'} own text": {"own_text": x}
        for x in (0, 0.125, 0.5)
    },
    "default, scales of one sign": {"full_range": False},
    "default, no passes": {"passes": 0},
    "default, 10 passes": {"passes": 10},
    "default, no refit": {"refit": False},
    **{f"default, power {norm:g}": {"range_norm": norm} for norm in (2.0, 2.4, 3.0, 4.0)},
    **{f"default, shrinkage {share:g}": {"shrinkage": share} for share in (0, 0.03, 0.2, 0.3)},
    **{f"default, strength {share:g}": {"target_strength": share} for share in (0.25, 0.5)},
    **{f"default, percdamp {x:g}": {"percdamp": x} for x in (0.0099, 0.0101, 0.03)},
    "GPTQ, default, bits chosen": {"size": None},
}
"""Settings by name; a size of None becomes the grid's own bits per weight."""
PEERS: dict[str, dict[str, Any]] = {
    "llm-compressor GPTQ": {"method": "gptq"},
    "llm-compressor GPTQ, imatrix_mse": {"method": "gptq", "observer": "imatrix_mse"},
    "llm-compressor AWQ": {"method": "awq"},
}
PACKAGES = ("numba", "numpy")


class Experiment:
    """A model with its texts as token ids, and the opened original."""

    def __init__(self, name: str, path: Path, texts: Texts, options: argparse.Namespace) -> None:
        self.name, self.path, self.device = name, path, options.device
        self.length, self.group_size, self.skip = MODELS[name]
        self.place = open_place(self.device)
        self.original = Subject.opened(path, self.place)
        self.scratch = options.models / f"quantized-{os.getpid()}"
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
        settings: dict[str, Any] = {
            "bits": bits,
            "symmetric": symmetric,
            "group_size": self.group_size,
            "samples": self.samples,
            "sequence_length": self.length,
            "skip": self.skip,
            **METHODS[method],
        }
        if "size" in settings:
            settings["size"] = bits + 16 / self.group_size
        text = [] if method == "RTN" else self.text
        stages: AbstractContextManager[Any] = nullcontext()
        if settings.pop("whole_blocks", False):
            stages = patch.object(TextCalibration, "stages", stages_of_whole_blocks)
        begin = time.perf_counter()
        with stages:
            report = quantize(self.path, self.scratch, text=text, device=self.device, **settings)
        seconds = time.perf_counter() - begin
        stored = 8 * sum(layer.stored_bytes or 0 for layer in report.layers)
        weights = sum(layer.shape[0] * layer.shape[1] for layer in report.layers)
        return self.rows(bits, symmetric, method, seconds, stored / weights)

    def peer(self, bits: int, symmetric: bool, method: str) -> list[QualityRow]:
        """Quantize by llm-compressor, write the dequantized checkpoint, and measure."""
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
        measured = measure_texts(list(self.tokens.values()), subject, self.original)
        for kind, found in zip(self.tokens, measured, strict=True):
            row = QualityRow(
                *(self.name, bits, symmetric, method, kind),
                nats=found.loss - known(found.original_loss),
                nats_error=known(found.excess_error),
                kl=known(found.kl),
                kl_error=known(found.kl_error),
                perplexity=found.perplexity,
                stored_bits=stored,
                seconds=seconds,
            )
            rows.append(row)
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


def stages_of_whole_blocks(
    self: TextCalibration, index: int, block: DecoderBlock, folded: Mapping[Any, Any]
) -> Iterator[Group]:
    """Statistics of all of a block's layers before any of them is quantized, as llm-compressor's."""
    del folded
    yield from ([found] for found in self.preview(index, block))
    self.skip(block, block)  # the text passes through the quantized block


def path_of(name: str, folder: Path, texts: Texts, device: str) -> Path:
    """Return the path of a model's checkpoint; fetch or train it the first time."""
    if name.startswith("SmolLM2-135M"):
        return checkpoint_of_smollm2()
    if name == "glassllm":
        return checkpoint_of_glassllm()
    path = folder / name
    if not path.exists():
        from trained import train

        train(path, name, texts.learnt, device)
    return path


def cases(options: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """Requested models, grids and methods, in the order of the methods' patterns."""
    found = dict.fromkeys(
        (name, grid, method)
        for pattern in options.method
        for grid in options.grid
        for name in options.model
        for method in (*METHODS, *PEERS)
        if fnmatchcase(method, pattern)
        and (GRIDS[grid][1] or not is_of_symmetric(METHODS.get(method, {})))
    )
    yield from found


def is_of_symmetric(given: dict[str, Any]) -> bool:
    """Return whether settings are measured only on symmetric grids."""
    return "size" in given or bool(given.get("full_range")) or given.keys() == {"full_range"}


def is_ours(case: tuple[str, str, str], folder: Path | None) -> bool:
    """Return whether this process is the first to reach a case, of those that share a folder."""
    if folder is None:
        return True
    try:
        (folder / ", ".join(case)).mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(WHOLE))
    parser.add_argument("--grid", nargs="+", choices=GRIDS, default=["4s", "3a", "2a"])
    parser.add_argument("--method", nargs="+", default=["*"], help="patterns of methods' names")
    parser.add_argument("--calibrate-on", choices=KINDS, default=KINDS[0])
    parser.add_argument("--tokens", type=int, default=TOKENS[0], help="tokens of calibration")
    parser.add_argument("--models", type=Path, default=Path("/tmp/numbacalib-models"))
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the CSV")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no row later")
    parser.add_argument(
        "--share", type=Path, help="a folder: processes with the same one divide the rows"
    )
    parser.add_argument(
        "--gather", type=Path, nargs="+", help="measure nothing: join the CSVs of these folders"
    )
    parser.add_argument("--resume", action="store_true", help="keep the rows of the CSV")
    return parser.parse_args()


def gathered(files: list[Path]) -> tuple[dict[str, str], list[QualityRow]]:
    """Machine and rows of several processes' files, with the last of equal rows."""
    found: dict[tuple[Any, ...], QualityRow] = {}
    for file in files:
        machine, rows = read_csv(file, QualityRow)
        found |= {row[:5]: row for row in rows}
    return machine, ordered(found.values())


def ordered(rows: Iterable[QualityRow]) -> list[QualityRow]:
    """Sort rows by model, grid and method."""
    names, grids, methods = list(MODELS), list(GRIDS.values()), [*METHODS, *PEERS]

    def place(row: QualityRow) -> tuple[int, int, int]:
        grid = grids.index((row.bits, row.symmetric))
        return names.index(row.model), grid, methods.index(row.method)

    return sorted(rows, key=place)


def machine_facts(options: argparse.Namespace) -> dict[str, str]:
    """Facts of the machine and the experiment for the table's caption."""
    facts = {
        "calibration": f"{options.tokens} tokens of calibration on {options.calibrate_on}",
        "evaluation": f"{TOKENS[1]} tokens of evaluation on each text",
    }
    if open_place(options.device).name != "cpu":
        import cupy

        facts["machine"] = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return describe_machine(*PACKAGES, **facts)


def main() -> int:
    """Measure the requested rows, and write the CSV row by row."""
    begin = time.monotonic()
    options = arguments()
    if options.gather:
        files = [file for folder in options.gather for file in sorted(folder.glob("quality-*.csv"))]
        machine, joined = gathered(files)
        write_csv("quality", machine, joined, options.output)
        print(quality_body(joined))
        return 0
    texts = read_texts(options.models)
    machine = machine_facts(options)
    file = csv_file("quality", machine, options.output)
    rows: list[QualityRow] = []
    if options.resume and file.exists():
        machine, rows = read_csv(file, QualityRow)
    opened: dict[str, Experiment] = {}
    for case in cases(options):
        name, grid, method = case
        if time.monotonic() - begin > options.seconds:
            print(f"no time for {', '.join(case)} and later cases", flush=True)
            break
        key = (name, *GRIDS[grid], method)
        if any(row[:4] == key for row in rows) or not is_ours(case, options.share):
            continue
        if name not in opened:
            path = path_of(name, options.models, texts, options.device)
            opened[name] = Experiment(name, path, texts, options)
        run = opened[name].peer if method in PEERS else opened[name].ours
        rows += run(*GRIDS[grid], method)
        rows = ordered(rows)
        write_csv("quality", machine, rows, options.output)
    print(quality_body(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
