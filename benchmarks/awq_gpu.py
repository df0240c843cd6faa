"""AWQ channel scores on one GPU against the read ceiling and torch.

    python benchmarks/awq_gpu.py

Needs the extra `cuda` and torch; see `harness_gpu`.
"""

from __future__ import annotations

import sys
from functools import partial

import torch
from harness import OURS, Case
from harness_gpu import DTYPES, READ, read, read_goal, run, type_name

import numbacalib

SHAPES = ((65536, 14336, 4096), (1 << 20, 4096, 1024))
"""Tokens N, output features M, channels K."""


def case(rows: int, features: int, channels: int, dtype: torch.dtype) -> Case:
    """Return the case of one shape."""
    a = torch.randn(rows, channels, device="cuda").to(dtype)
    w = torch.randn(features, channels, device="cuda").to(dtype)
    return Case(
        "AWQ scores",
        f"N={rows} M={features} K={channels}",
        type_name(dtype),
        a.nbytes + w.nbytes,
        "GB/s",
        {
            OURS: lambda: numbacalib.awq_channel_scores(a, w),
            "torch": lambda: a.abs().amax(0).float() * w.abs().mean(0, dtype=torch.float32),
            READ: lambda: read(a, w),
        },
        (read_goal(OURS),),
    )


if __name__ == "__main__":
    sys.exit(run("awq", [(partial(case, *s, d), 5) for s in SHAPES for d in DTYPES]))
