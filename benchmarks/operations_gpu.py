"""The statistics and GPTQ of whole layers on one GPU, against the read ceiling and torch.

    python benchmarks/operations_gpu.py

Prints the rows and writes ``results/operations-gpu-<GPU>.csv``. Needs the extra `cuda` and torch. Times
are per call by device events, in runs of several calls, so they include what the host cannot hide.
"""

from __future__ import annotations

import torch
from harness import LIMIT, OURS, Case, Goal, Row, describe_machine, measure, write_csv
from hessian_gpu import PACKAGES, device_clock

import numbacalib
from numbacalib.linalg import factor_hessian
from numbacalib.ops.gptq_quantize_column import quantize_direct
from numbacalib.ops.grid import group_indices
from numbacalib.spec.grid import Grid

SCORES = ((65536, 14336, 4096), (1 << 20, 4096, 1024))
GRADIENTS = ((512, 1 << 22), (1 << 20, 1024))
LAYERS = ((1024, 1024, 1.5), (4096, 4096, 6.0), (4096, 14336, 75.0))
"""M, K and the milliseconds to reach, from Hessian to codes at 4 bits in groups of 128."""
READ = LIMIT + "read"


def read(*tensors: torch.Tensor) -> None:
    """Read every byte once, as fast as torch sums float32."""
    for tensor in tensors:
        tensor.view(torch.float32).sum()


def scores_case(rows: int, features: int, channels: int, dtype: torch.dtype) -> Case:
    """AWQ channel scores."""
    a = torch.randn(rows, channels, device="cuda").to(dtype)
    w = torch.randn(features, channels, device="cuda").to(dtype)
    candidates = {
        OURS: lambda: numbacalib.awq_channel_scores(a, w),
        "torch": lambda: a.abs().amax(0).float() * w.abs().mean(0, dtype=torch.float32),
        READ: lambda: read(a, w),
    }
    return Case(
        "AWQ scores",
        f"N={rows} M={features} K={channels}",
        str(dtype).removeprefix("torch."),
        a.nbytes + w.nbytes,
        "GB/s",
        candidates,
        (Goal(OURS, READ, ">=0.9"),),
    )


def fisher_case(rows: int, parameters: int, dtype: torch.dtype) -> Case:
    """Fisher information."""
    g = torch.randn(rows, parameters, device="cuda").to(dtype)
    candidates = {
        OURS: lambda: numbacalib.fisher_information(g),
        "torch": lambda: g.float().square().mean(0),
        READ: lambda: read(g),
    }
    return Case(
        "Fisher information",
        f"N={rows} P={parameters}",
        str(dtype).removeprefix("torch."),
        g.nbytes,
        "GB/s",
        candidates,
        (Goal(OURS, READ, ">=0.9"),),
    )


def layer_case(rows: int, channels: int, target: float) -> Case:
    """GPTQ from the Hessian to codes; the peer is torch's preparation of its inverse alone."""
    x = torch.randn(2 * channels, channels, device="cuda")
    hessian = x.T @ x / channels
    weight = torch.randn(rows, channels, device="cuda") * 0.02
    groups = group_indices(channels, 128)
    damping = 0.01 * hessian.diagonal().mean() * torch.eye(channels, device="cuda")

    def ours() -> object:
        return quantize_direct(weight, factor_hessian(hessian).upper, Grid(4, False), groups)

    def preparation() -> torch.Tensor:
        lower = torch.linalg.cholesky(hessian + damping)
        return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)

    peer = "torch potrf, potri, potrf alone"
    work = channels**3 / 3 + rows * channels**2
    return Case(
        "GPTQ of a layer",
        f"M={rows} K={channels}",
        "float32",
        work,
        "GFLOP/s",
        {OURS: ours, peer: preparation},
        (Goal(OURS, peer, ">=1"),),
        works={peer: work},
        note=lambda _: f"target {target:g} ms",
    )


def main() -> None:
    """Measure everything."""
    torch.backends.cuda.matmul.allow_tf32 = False
    rows: list[Row] = []
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    cases = [lambda s=s, d=d: scores_case(*s, d) for s in SCORES for d in dtypes]
    cases += [lambda s=s, d=d: fisher_case(*s, d) for s in GRADIENTS for d in dtypes]
    cases += [lambda s=s: layer_case(*s) for s in LAYERS]
    for make in cases:
        case = make()
        rows += measure(case, clock=device_clock(5))
        for row in rows[-len(case.candidates) :]:
            spread = f"{row.fastest * 1e3:.3f}..{row.slowest * 1e3:.3f}"
            share = f"{row.share:.2f} of {row.against}, {row.target}" if row.target else ""
            print(f"  {row.who:32} {row.seconds * 1e3:9.3f} ms ({spread}) {share} {row.note}")
        del case
        torch.cuda.empty_cache()
        machine = describe_machine(*PACKAGES, machine=torch.cuda.get_device_name())
        path = write_csv("operations-gpu", machine, rows)
    print(path)


if __name__ == "__main__":
    main()
