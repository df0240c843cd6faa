"""The Hessian update on one GPU against cuBLAS's full product of the same operands.

    python benchmarks/hessian_gpu.py

Prints the table and writes ``results/hessian-gpu-<GPU>.csv``. Needs the extra `cuda` and torch.
Rates count 2 B K^2 operations, whatever a candidate saves by symmetry. Times are per call, in runs of
several calls on the default stream, so they include what the host cannot hide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from harness import LIMIT, OURS, Case, Goal, Row, describe_machine, measure, write_csv

import numbacalib

PACKAGES = ("numba", "numba-cuda", "numpy", "torch")
SHAPES = ((8192, 4096), (8192, 14336))
CUBLAS = "cuBLAS"


def case(rows: int, channels: int, dtype: torch.dtype) -> tuple[Case, int]:
    """Return the case of one shape, and how many calls make a run."""
    x = torch.randn(rows, channels, device="cuda").to(dtype)
    hessian = torch.zeros(channels, channels, device="cuda")

    def ours() -> None:
        numbacalib.gptq_hessian_update(hessian, x, beta=0.9, out=hessian)

    def cublas() -> None:
        if dtype == torch.float32:
            hessian.addmm_(x.T, x, beta=0.9, alpha=2 / rows)
        else:
            torch.mm(x.T, x, out_dtype=torch.float32)

    candidates: dict[str, Callable[[], Any]] = {OURS: ours, CUBLAS: cublas}
    works = {}
    if dtype == torch.float32:
        halves = x.half()
        name = LIMIT + "three float16 products of one triangle"
        candidates[name] = lambda: torch.mm(halves.T, halves, out_dtype=torch.float32)
        works[name] = 2 * rows * channels**2 * 2 / 3
    goal = Goal(OURS, CUBLAS, ">=3" if dtype == torch.float32 else ">=1")
    shape, kind = f"B={rows} K={channels}", str(dtype).removeprefix("torch.")
    work = 2 * rows * channels**2
    calls = max(2, int(2e13 / work))
    done = Case("Hessian update", shape, kind, work, "GFLOP/s", candidates, (goal,), works)
    return done, calls


def device_clock(calls: int) -> Callable[[Callable[[], Any]], float]:
    """Return a clock of device time: seconds of one call, from a run of `calls`."""

    def clock(run: Callable[[], Any]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        run()
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / calls

    return clock


def main() -> None:
    """Measure all shapes and dtypes."""
    torch.backends.cuda.matmul.allow_tf32 = False
    rows: list[Row] = []
    for shape in SHAPES:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            done, calls = case(*shape, dtype)
            rows += measure(done, clock=device_clock(calls))
            for row in rows[-len(done.candidates) :]:
                spread = f"{row.fastest * 1e3:.3f}..{row.slowest * 1e3:.3f}"
                share = f"{row.share:.2f} of {row.against}, {row.target}" if row.target else ""
                print(
                    f"  {row.who:45} {row.seconds * 1e3:9.3f} ms ({spread}) {row.rate:9.0f} {share}"
                )
    machine = describe_machine(*PACKAGES, machine=torch.cuda.get_device_name())
    print(write_csv("hessian-gpu", machine, rows))


if __name__ == "__main__":
    main()
