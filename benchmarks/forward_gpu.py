"""Necessary parts of a whole model's run on a GPU, each timed alone: forward, Hessians, solves.

    python benchmarks/forward_gpu.py 1b 8b

Weights are random bfloat16. Operations per second count the products of the linear layers and the unmasked
ones of attention: norms, rotary embeddings, activations, softmax and residual sums take time but do not
count. The seconds of a block's pieces, times the number of blocks, are the floor in `model_gpu.py`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from harness import RESULTS, Row, describe_machine, figure, write_csv
from model_gpu import PACKAGES, SHAPES, VOCABULARY, write_model

from numbacalib.methods import gptq_shared
from numbacalib.models import Decoder, open_checkpoint, open_place
from numbacalib.ops.matrix import cast
from numbacalib.statistics import InputStatistics

BLOCKS, GOAL = 2, 450.0
"""Blocks of the model, and TFLOP/s that those of 8B must reach."""
SAMPLES, LENGTH, ROUNDS = 128, 2048, 5
SOLVER: dict[str, Any] = {"bits": 4, "group_size": 128, "symmetric": True}
SOLVER |= {"act_order": "desc", "static_groups": True}


def seconds_of(run: Callable[[], Any]) -> list[float]:
    """Seconds of a call until the device is done, over several rounds, sorted."""
    from numba import cuda

    found = []
    for _ in range(1 + ROUNDS):
        cuda.synchronize()
        begin = time.perf_counter()
        run()
        cuda.synchronize()
        found.append(time.perf_counter() - begin)
    return sorted(found[1:])


class Pieces:
    """Pieces of one model's run, on all its tokens.

    Attributes
    ----------
    operations : dict
        Of the pieces that are products: two for each multiplication and addition.
    """

    def __init__(self, model: Path, samples: int, length: int) -> None:
        place = open_place("cuda")
        self._decoder = Decoder(open_checkpoint(model), place=place)
        blocks = min(BLOCKS, self._decoder.config.num_layers)
        self._blocks = [self._decoder.block(index) for index in range(blocks)]
        tokens = np.random.default_rng(0).integers(0, VOCABULARY, (samples, length))
        self._parts = list(self._decoder.batches(self._decoder.embed(tokens)))
        config, linears = self._decoder.config, self._blocks[0].linears
        mlp = 2.0 * tokens.size * sum(linears[kind].size for kind in linears if "mlp" in kind)
        every = 2.0 * tokens.size * sum(weight.size for weight in linears.values())
        # a token attends to half of its sequence and itself, for scores and again for values
        seen = 2.0 * tokens.size * config.hidden_size * (length + 1)
        self.operations = {"attention": every - mlp + seen, "MLP": mlp}
        self.operations["whole blocks"] = blocks * (every + seen)

    def forward(self) -> dict[str, list[float]]:
        """Seconds of the text through the halves of a block, and through whole blocks."""
        block = self._blocks[0]
        pieces = {"attention": block.attention.forward, "MLP": block.mlp.forward}
        found = {name: seconds_of(partial(self._each, run)) for name, run in pieces.items()}

        def whole(part: Any) -> None:
            for each in self._blocks:
                each.forward(part)

        return found | {"whole blocks": seconds_of(lambda: self._each(whole))}

    def _each(self, run: Callable[[Any], Any]) -> None:
        for part in self._parts:
            run(part)

    def solving(self) -> dict[str, list[float]]:
        """Seconds of a block's Hessians, and of its solves."""
        block, stages = self._blocks[0], []
        rows = int(np.prod(self._parts[0].shape[:-1]))
        for kinds in block.stages:
            inputs = _normal((rows, block.linears[kinds[0]].shape[1]))
            statistics = self._collected(inputs)
            stages.append((kinds, inputs, statistics.hessian))
        hessians = seconds_of(lambda: [self._collected(inputs) for _, inputs, _ in stages])

        def solve() -> None:
            for kinds, _, hessian in stages:
                gptq_shared({kind: block.linears[kind] for kind in kinds}, hessian, **SOLVER)

        return {"Hessians of a block": hessians, "solves of a block": seconds_of(solve)}

    def _collected(self, inputs: Any) -> InputStatistics:
        """Statistics of as many batches as the text has."""
        statistics = InputStatistics(inputs.shape[1])
        for _ in self._parts:
            statistics.update(inputs)
        return statistics

    def floor(self, blocks: int) -> float:
        """Seconds of these blocks without any other work."""
        middle = ROUNDS // 2
        forward = self.forward()["whole blocks"][middle] / len(self._blocks)
        return blocks * (forward + sum(each[middle] for each in self.solving().values()))


def _normal(shape: tuple[int, int]) -> Any:
    """Random bfloat16 inputs on the device."""
    import cupy

    return cast(cupy.random.standard_normal(shape, dtype=np.float32), np.dtype(ml_dtypes.bfloat16))


def rows_of(name: str, folder: Path) -> list[Row]:
    """Measure the pieces of a shape."""
    model = folder / f"{name}-{BLOCKS}"
    if not model.exists():
        write_model(model, SHAPES[name] | {"num_hidden_layers": BLOCKS})
    pieces, rows = Pieces(model, SAMPLES, LENGTH), []
    for piece, times in (pieces.forward() | pieces.solving()).items():
        middle = times[ROUNDS // 2]
        row = figure(piece, name, middle, "s", dtype="bfloat16")
        if piece in pieces.operations:
            rate = pieces.operations[piece] / middle / 1e12
            row = figure(f"forward, {piece}", name, rate, "TFLOP/s", dtype="bfloat16")
            if name == "8b" and piece == "whole blocks":
                row = row._replace(share=rate / GOAL, against=f"{GOAL:g} TFLOP/s", target=">=1")
        print(f"{name}, {row.op}: {row.rate:.4g} {row.unit} ({middle * 1e3:.1f} ms)")
        row = row._replace(seconds=middle, fastest=times[0], slowest=times[-1], rounds=ROUNDS)
        rows.append(row)
    return rows


def main() -> int:
    """Measure and write the CSV; return 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="+", choices=SHAPES)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/numbacalib-model"))
    options = parser.parse_args()
    rows = [row for name in options.shapes for row in rows_of(name, options.folder)]
    import cupy

    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    print(write_csv("forward-gpu", describe_machine(*PACKAGES, machine=name), rows, RESULTS))
    return int(any(row.falls_short for row in rows))


if __name__ == "__main__":
    sys.exit(main())
