"""The forward part of a whole model on a GPU: tokens through decoder blocks, in operations a second.

    python benchmarks/forward_gpu.py 8b

Weights are random bfloat16. Counted are the products of the linear layers, and of attention those that its
mask leaves: norms, rotary embeddings, activations, softmax and residual sums take time and count nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, Row, describe_machine, figure, write_csv
from model_gpu import PACKAGES, SHAPES, VOCABULARY, write_model

from numbacalib.models import Decoder, open_checkpoint, open_place

BLOCKS, GOAL = 2, 450e12
"""Blocks of the model, and operations a second that those of 8B must reach."""
SAMPLES, LENGTH, ROUNDS = 128, 2048, 7


def operations(shape: dict[str, int], weights: int) -> dict[str, float]:
    """Operations of a block's halves, and of both: two for each product and its sum."""
    tokens = SAMPLES * LENGTH
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    mlp = 2.0 * tokens * 3 * hidden * inner
    # a token sees half of its sequence and itself, for scores and again for values
    seen = 2.0 * 2 * tokens * hidden * (LENGTH + 1) / 2
    linears = 2.0 * tokens * weights
    return {"attention": linears - mlp + seen, "MLP": mlp, "whole blocks": linears + seen}


def seconds(parts: list[Any], forward: Callable[[Any], Any]) -> list[float]:
    """Seconds of all parts of the text through one piece of a model, of several rounds."""
    from numba import cuda

    found = []
    for _ in range(1 + ROUNDS):
        cuda.synchronize()
        begin = time.perf_counter()
        for part in parts:
            forward(part)
        cuda.synchronize()
        found.append(time.perf_counter() - begin)
    return sorted(found[1:])


def rows_of(name: str, folder: Path) -> list[Row]:
    """Measure the halves of a block of a shape, and whole blocks one after the other."""
    shape = SHAPES[name] | {"num_hidden_layers": BLOCKS}
    model = folder / f"{name}-{BLOCKS}"
    if not model.exists():
        write_model(model, shape)
    decoder = Decoder(open_checkpoint(model), place=open_place("cuda"))
    blocks = [decoder.block(index) for index in range(BLOCKS)]
    weights = sum(weight.size for weight in blocks[0].linears.values())
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (SAMPLES, LENGTH))
    parts = list(decoder.batches(decoder.embed(tokens)))

    def whole(part: Any) -> None:
        for block in blocks:
            block.forward(part)

    pieces = {"attention": blocks[0].attention.forward, "MLP": blocks[0].mlp.forward}
    rows = []
    for piece, forward in (pieces | {"whole blocks": whole}).items():
        times = seconds(parts, forward)
        count = operations(shape, weights)[piece] * (BLOCKS if forward is whole else 1)
        rate = count / times[ROUNDS // 2]
        print(f"{name} {piece}: {rate / 1e12:.0f} TFLOP/s, {times[ROUNDS // 2] * 1e3:.1f} ms")
        row = figure(f"forward, {piece}", name, rate / 1e12, "TFLOP/s", dtype="bfloat16")
        row = row._replace(seconds=times[ROUNDS // 2], fastest=times[0], slowest=times[-1])
        if forward is whole and name == "8b":
            against = f"{GOAL / 1e12:g} TFLOP/s"
            row = row._replace(share=rate / GOAL, against=against, target=">=1")
        rows.append(row._replace(rounds=ROUNDS))
    return rows


def main() -> int:
    """Measure and write the CSV; return 1 where the goal is missed."""
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
