"""Fisher information on one GPU against the read ceiling and torch.

    python benchmarks/fisher_gpu.py

Needs the extra `cuda` and torch; see `harness_gpu`.
"""

from __future__ import annotations

import sys
from functools import partial

import torch
from harness import OURS, Case
from harness_gpu import DTYPES, READ, read, read_goal, run, type_name

import numbacalib

SHAPES = ((512, 1 << 22), (1 << 20, 1024))
"""Samples N, parameters P."""


def case(rows: int, parameters: int, dtype: torch.dtype) -> Case:
    """Return the case of one shape."""
    g = torch.randn(rows, parameters, device="cuda").to(dtype)
    return Case(
        "Fisher information",
        f"N={rows} P={parameters}",
        type_name(dtype),
        g.nbytes,
        "GB/s",
        {
            OURS: lambda: numbacalib.fisher_information(g),
            "torch": lambda: g.float().square().mean(0),
            READ: lambda: read(g),
        },
        (read_goal(OURS),),
    )


if __name__ == "__main__":
    sys.exit(run("fisher", [(partial(case, *s, d), 5) for s in SHAPES for d in DTYPES]))
