"""GPTQ of whole layers on one GPU, from the Hessian to codes, and of many experts in one call.

    python benchmarks/gptq_gpu.py

4 bits, groups of 128, with the command's order and groups: descending diagonal, static groups. Peers, which
use the stored order of columns, are the original algorithm in eager torch, llm-compressor with its Triton
kernel, and torch's preparation of the inverse Hessian alone. The note compares the loss of some rows,
trace(D H D^T), with that of the same settings in float64. Needs the extra `cuda`, torch, and
llm-compressor's requirements; see `harness_gpu`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import OURS, Case, Goal
from harness_gpu import ON_OTHERS, other_capability, run
from peers import LlmCompressor, original_gptq, torch_inverse_factor

from numbacalib.methods import QuantizedWeight, gptq, gptq_batch

GROUP = 128
GRID: dict[str, Any] = {"bits": 4, "group_size": GROUP}
SETTINGS: dict[str, Any] = GRID | {"act_order": "desc", "static_groups": True}
LAYERS = ((1024, 1024, 1.3), (4096, 4096, 5.5), (4096, 14336, 45.0))
"""M, K and the target in milliseconds."""
EXPERTS = (64, 768, 2048, 24.0)
"""E, M, K and the target in milliseconds."""
ORIGINAL_UP_TO = 4096
"""Largest K for which the original runs, since it takes seconds."""
CHECKED = 64
"""Rows whose losses are compared."""


def layer(rows: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and Hessian of correlated inputs."""
    x = torch.randn(2 * channels, channels, device="cuda")
    x[:, 1:] += 0.5 * x[:, :-1]
    return torch.randn(rows, channels, device="cuda") * 0.02, x.T @ x / channels


def losses(weight: torch.Tensor, hessian: torch.Tensor, found: QuantizedWeight) -> float:
    """``trace(D H D^T)`` of the first rows, float64."""
    values = torch.as_tensor(found.dequantize(), device="cuda").double()[:CHECKED]
    difference = weight[:CHECKED].double() - values
    return float(((difference @ hessian.double()) * difference).sum())


def note(weight: torch.Tensor, hessian: torch.Tensor, found: QuantizedWeight) -> str:
    """Difference of the loss from that in float64."""
    exact = gptq(weight[:CHECKED].double(), hessian.double(), **SETTINGS)
    ratio = losses(weight, hessian, found) / losses(weight, hessian, exact)
    return f"loss {100 * (ratio - 1):+.3f} % of float64's"


def layer_case(
    rows: int, channels: int, milliseconds: float, llm_compressor: LlmCompressor
) -> Case:
    """Return the case of one layer."""
    weight, hessian = layer(rows, channels)

    def on_others() -> QuantizedWeight:
        with other_capability():
            return gptq(weight, hessian, **SETTINGS)

    candidates: dict[str, Callable[[], Any]] = {
        OURS: lambda: gptq(weight, hessian, **SETTINGS),
        ON_OTHERS: on_others,
        f"{OURS}, columns as they come": lambda: gptq(weight, hessian, **GRID),
        "llm-compressor": lambda: llm_compressor(weight, hessian, GROUP),
        "torch potrf, potri, potrf alone": lambda: torch_inverse_factor(hessian),
    }
    if channels <= ORIGINAL_UP_TO:
        candidates["column loop"] = lambda: original_gptq(weight, hessian, GROUP)
    return Case(
        "GPTQ of a layer",
        f"M={rows} K={channels}",
        "float32",
        channels**3 / 3 + rows * channels**2,
        "GFLOP/s",
        candidates,
        (Goal(OURS, f"{milliseconds:g} ms", "<=1", milliseconds / 1e3),),
        note=lambda found: (
            note(weight, hessian, found) if isinstance(found, QuantizedWeight) else ""
        ),
    )


def experts_case(
    count: int, rows: int, channels: int, milliseconds: float, llm_compressor: LlmCompressor
) -> Case:
    """Return the case of many equal layers, in one call and one by one."""
    weights, hessians = (
        torch.stack(tensors)
        for tensors in zip(*(layer(rows, channels) for _ in range(count)), strict=True)
    )
    return Case(
        "GPTQ of experts",
        f"E={count} M={rows} K={channels}",
        "float32",
        count * (channels**3 / 3 + rows * channels**2),
        "GFLOP/s",
        {
            OURS: lambda: gptq_batch(weights, hessians, **SETTINGS),
            f"{OURS}, columns as they come": lambda: gptq_batch(weights, hessians, **GRID),
            f"{OURS}, one by one": lambda: [
                gptq(w, h, **SETTINGS) for w, h in zip(weights, hessians, strict=True)
            ],
            "llm-compressor": lambda: llm_compressor(weights, hessians, GROUP),
        },
        (Goal(OURS, f"{milliseconds:g} ms", "<=1", milliseconds / 1e3),),
        note=lambda found: (
            note(weights[-1], hessians[-1], found[-1]) if isinstance(found, list) else ""
        ),
    )


def main() -> int:
    """Measure; return 1 if a target is missed."""
    llm_compressor = LlmCompressor()
    cases = [(partial(layer_case, *layer, llm_compressor), 5) for layer in LAYERS]
    cases.append((partial(experts_case, *EXPERTS, llm_compressor), 5))
    return run("gptq", cases)


if __name__ == "__main__":
    sys.exit(main())
