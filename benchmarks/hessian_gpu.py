"""Hessian update on one GPU against cuBLAS's full product of the same operands.

    python benchmarks/hessian_gpu.py

Rates count 2 B K^2 operations, even if a candidate saves some by symmetry. Needs the extra `cuda` and
torch; see `harness_gpu`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import LIMIT, OURS, Case, Goal
from harness_gpu import ON_OTHERS, run, type_name

import numbacalib
from numbacalib.ops.gptq_hessian_update.gpu import update_by_blas
from numbacalib.runtime.backend import arrays_of_one_device
from numbacalib.runtime.half import carrier

SHAPES = ((8192, 4096), (8192, 14336))
"""Rows B of a block, channels K."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CUBLAS = "cuBLAS"


def update_as_on_others(hessian: torch.Tensor, x: torch.Tensor) -> None:
    """Update as on GPUs of other compute capabilities than 9.0."""
    with arrays_of_one_device(hessian=hessian, x=x) as (matrix, rows):
        update_by_blas(carrier(matrix), rows, 2 / len(rows), 0.9, matrix)


def work_of(rows: int, channels: int) -> int:
    """Operations of a full product."""
    return 2 * rows * channels**2


def case(rows: int, channels: int, dtype: torch.dtype) -> Case:
    """Return the case of one shape."""
    x = torch.randn(rows, channels, device="cuda").to(dtype)
    hessian = torch.zeros(channels, channels, device="cuda")

    def ours() -> None:
        numbacalib.gptq_hessian_update(hessian, x, beta=0.9, out=hessian)

    def cublas() -> None:
        if dtype == torch.float32:
            hessian.addmm_(x.T, x, beta=0.9, alpha=2 / rows)
        else:
            torch.mm(x.T, x, out_dtype=torch.float32)

    work = work_of(rows, channels)
    candidates: dict[str, Callable[[], Any]] = {
        OURS: ours,
        ON_OTHERS: partial(update_as_on_others, hessian, x),
        CUBLAS: cublas,
    }
    works = {}
    if dtype == torch.float32:
        halves = x.half()
        name = LIMIT + "three float16 products of one triangle"
        candidates[name] = lambda: torch.mm(halves.T, halves, out_dtype=torch.float32)
        works[name] = work * 2 / 3
    goal = Goal(OURS, CUBLAS, ">=3" if dtype == torch.float32 else ">=1")
    shape = f"B={rows} K={channels}"
    return Case(
        "Hessian update", shape, type_name(dtype), work, "GFLOP/s", candidates, (goal,), works
    )


if __name__ == "__main__":
    sys.exit(
        run(
            "hessian",
            [
                (partial(case, *s, d), max(2, int(2e13 / work_of(*s))))
                for s in SHAPES
                for d in DTYPES
            ],
        )
    )
