"""Causal attention on one GPU, against torch's.

    python benchmarks/attention_gpu.py

Rates count the products that the causal mask leaves, ``S H T^2 (D + V)`` operations. Needs the extra `cuda`
and torch; see `harness_gpu`.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import NamedTuple

import torch
from harness import OURS, Case, Goal
from harness_gpu import run, type_name

from numbacalib.ops.attention import attention

TOKENS, SEQUENCES = 2048, 8
LEAST = 150e12
"""Operations per second at which attention takes a tenth of a run of the 1B shape."""


class Heads(NamedTuple):
    """Heads of a model."""

    model: str
    queries: int
    keys: int
    size: int
    """Of a query and a key, D."""
    width: int
    """Of a value, V."""


HEADS = (
    Heads("Llama-3.2-1B", 32, 8, 64, 64),
    Heads("Llama-3.1-8B", 32, 8, 128, 128),
    Heads("DeepSeek-V2-Lite", 16, 16, 192, 128),
)


def case(heads: Heads, dtype: torch.dtype) -> Case:
    """Return the case of one model's heads."""

    def normal(count: int, size: int) -> torch.Tensor:
        return torch.randn(SEQUENCES, TOKENS, count, size, device="cuda").to(dtype)

    sizes = (heads.queries, heads.size), (heads.keys, heads.size), (heads.keys, heads.width)
    given = [normal(*size) for size in sizes]
    turned = [array.transpose(1, 2) for array in given]
    peer = partial(torch.nn.functional.scaled_dot_product_attention, *turned, is_causal=True)
    work = SEQUENCES * heads.queries * TOKENS**2 * (heads.size + heads.width)
    shape = f"{heads.model}: S={SEQUENCES} T={TOKENS} H={heads.queries} H'={heads.keys}"
    return Case(
        "attention",
        f"{shape} D={heads.size} V={heads.width}",
        type_name(dtype),
        work,
        "GFLOP/s",
        {
            OURS: partial(attention, *given),
            "torch": partial(peer, enable_gqa=heads.keys < heads.queries),
        },
        (Goal(OURS, f"{LEAST / 1e12:.0f} TFLOP/s", "<=1", work / LEAST),),
    )


if __name__ == "__main__":
    sys.exit(run("attention", [(partial(case, heads, torch.bfloat16), 20) for heads in HEADS]))
