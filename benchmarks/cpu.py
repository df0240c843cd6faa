"""Every operation, and GPTQ of whole layers, on the CPU against alternatives that a user might choose.

    python benchmarks/cpu.py [--quick] [--docs]

Writes ``results/cpu-<machine>.csv`` and the plot beside it, prints the table and the missed targets, and
exits 1 if there are any. `--quick` runs small shapes, to check the script itself, and writes to the
temporary directory. Needs the extra `benchmarks`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import peers
from fresh import memory_rows, startup_rows
from harness import (
    LIMIT,
    OURS,
    RESULTS,
    Case,
    Goal,
    Row,
    describe_machine,
    figure,
    measure,
    write_csv,
)
from peers import tensor
from report import PLOTTED, parser, report

import numbacalib
from numbacalib.linalg import factor_hessians
from numbacalib.methods import gptq, rtn
from numbacalib.ops.gptq_quantize_column import quantize_direct
from numbacalib.spec.gptq import ColumnGrids
from numbacalib.spec.grid import Grid, group_indices

from scipy.linalg import blas  # isort: skip  (after numbacalib, which lets its idle threads sleep)

PACKAGES = ("numba", "numpy", "scipy", "torch", "onnxruntime", "compressed-tensors", "ml_dtypes")
DTYPES = ("float32", "float64", "bfloat16", "float16")
GROUP = 128
READS = 21
"""Rounds of memory-bound cases, whose rate on a shared machine varies by half from second to second."""
EXACT, ROUNDED = 1e-4, 2e-2
"""Allowed relative differences between candidates: for float32 sums, and for peers that round more."""


def random_matrix(rows: int, columns: int, dtype: str = "float32", scale: float = 1.0):
    """Random normal matrix, generated in runs of rows so that no wide copy of the whole is needed."""
    rng = np.random.default_rng(rows + columns)
    matrix = np.empty((rows, columns), getattr(ml_dtypes, dtype, dtype))
    for part in np.array_split(matrix, max(1, matrix.size >> 24)):
        part[:] = rng.standard_normal(part.shape, np.float32) * np.float32(scale)
    return matrix


def read_goal(dtype: str) -> tuple[Goal, ...]:
    """Share of its input's read bandwidth that a reduction must reach."""
    return (Goal(OURS, LIMIT + "read", ">=0.85" if dtype in ("float32", "float64") else ">=0.7"),)


def scores_case(N: int, M: int, K: int, dtype: str) -> Case:
    """AWQ channel scores of N activations and M output features."""
    a, w = random_matrix(N, K, dtype), random_matrix(M, K, dtype, 0.02)
    candidates = {
        OURS: lambda: numbacalib.awq_channel_scores(a, w),
        "torch": lambda: peers.torch_scores(tensor(a), tensor(w)),
        **peers.readers(a, w),
    }
    if dtype in ("float32", "float64"):
        candidates["numpy"] = lambda: peers.numpy_scores(a, w)
    return Case(
        "AWQ scores",
        f"N={N} M={M} K={K}",
        dtype,
        a.nbytes + w.nbytes,
        "GB/s",
        candidates,
        read_goal(dtype),
        tolerance=EXACT,
    )


def fisher_case(N: int, P: int, dtype: str) -> Case:
    """Fisher information of P parameters from N samples."""
    g = random_matrix(N, P, dtype)
    candidates = {
        OURS: lambda: numbacalib.fisher_information(g),
        "torch": lambda: peers.torch_fisher(tensor(g)),
        **peers.readers(g),
    }
    if dtype in ("float32", "float64"):
        candidates["numpy"] = lambda: np.square(g).mean(axis=0)
        candidates["numpy einsum"] = lambda: np.einsum("np,np->p", g, g) / len(g)
    return Case(
        "Fisher information",
        f"N={N} P={P}",
        dtype,
        g.nbytes,
        "GB/s",
        candidates,
        read_goal(dtype),
        tolerance=EXACT,
    )


def hessian_case(B: int, K: int, dtype: str, *, goal: bool) -> Case:
    """Hessian update in place from B rows; rates count 2 B K² operations, of which ssyrk does half."""
    x = random_matrix(B, K, dtype)
    wide = x if dtype == "float32" else x.astype(np.float32)
    own, peer, plain, triangle, other = (np.zeros((K, K), np.float32) for _ in range(5))
    candidates = {
        OURS: lambda: numbacalib.gptq_hessian_update(own, x, out=own),
        LIMIT + "ssyrk": lambda: blas.ssyrk(
            2 / B, wide.T, beta=1.0, c=triangle.T, trans=0, lower=1, overwrite_c=1
        ),
    }
    if dtype == "float32":
        target = Goal(OURS, LIMIT + "ssyrk", ">=0.95")
        candidates["numpy"] = lambda: np.add(plain, (x.T @ x) * np.float32(2 / B), out=plain)
    else:
        target = Goal(OURS, LIMIT + "float32", ">=0.85")
        candidates = {
            LIMIT + "float32": lambda: numbacalib.gptq_hessian_update(other, wide, out=other),
            **candidates,
        }
    candidates["torch"] = lambda: peers.torch_hessian(tensor(peer), tensor(x))
    return Case(
        "Hessian update",
        f"B={B} K={K}",
        dtype,
        2 * B * K * K,
        "GFLOP/s",
        candidates,
        (target,) if goal else (),
        tolerance=EXACT,
    )


def layer_hessian(K: int) -> np.ndarray:
    """Hessian of correlated inputs, as in real layers."""
    x = random_matrix(2 * K, K)
    x += x[:, :1] + np.roll(x, 1, axis=1)
    return numbacalib.gptq_hessian_update(np.zeros((K, K), np.float32), x)


def inverse_case(K: int, *, goal: bool) -> Case:
    """Inverse factor from the Hessian; the rate counts the K³ operations of potrf, potri and potrf."""
    h = layer_hessian(K)
    return Case(
        "inverse factor",
        f"K={K}",
        "float32",
        4 / 3 * K**3,
        "GFLOP/s",
        {
            OURS: lambda: numbacalib.gptq_inverse_hessian(h),
            "torch": lambda: peers.torch_inverse_factor(tensor(h)),
            "numpy": lambda: peers.numpy_inverse_factor(h),
        },
        (Goal(OURS, "torch", "<=0.5"),) if goal else (),
        tolerance=ROUNDED,
    )


def product(n: int):
    """Return a matrix product of order n and its operations, for sgemm's rate on this machine."""
    a, b, c = (random_matrix(n, n) for _ in range(3))
    return (lambda: np.matmul(a, b, out=c)), 2 * n**3


def columns_case(M: int, K: int, *, goal: bool) -> Case:
    """Column part of GPTQ alone, from a given factor; the rate counts M K² operations."""
    w, h = random_matrix(M, K, scale=0.02), layer_hessian(K)
    upper, inverse = factor_hessians(h[None], [0.01]).upper, numbacalib.gptq_inverse_hessian(h)
    grids = ColumnGrids(Grid(4, False), group_indices(K, GROUP)[None])
    multiply, operations = product(min(K, 4096))
    sgemm = LIMIT + "sgemm"
    whos = (f"{OURS}, direct form", f"{OURS}, inverse factor")
    return Case(
        "GPTQ columns",
        f"{M} x {K}",
        "float32",
        M * K * K,
        "GFLOP/s",
        {
            whos[0]: lambda: quantize_direct(w, upper, grids),
            whos[1]: lambda: numbacalib.gptq_quantize_column(w, inverse, 4, GROUP, False),
            "column loop": lambda: peers.column_loop(tensor(w), tensor(inverse), GROUP),
            sgemm: multiply,
        },
        tuple(Goal(who, sgemm, ">=0.6") for who in whos) if goal else (),
        {sgemm: operations},
    )


def layer_case(M: int, K: int, llm_compressor: Any, *, goal: bool) -> Case:
    """GPTQ of a layer from its Hessian, 4 bits, groups of 128, preparation included.

    The limit is the arithmetic of the direct form, M K² + K³ / 3, at sgemm's rate. Without
    `llm_compressor` no peer runs.
    """
    w, h = random_matrix(M, K, scale=0.02), layer_hessian(K)
    multiply, operations = product(min(K, 4096))
    candidates: dict[str, Callable[[], Any]] = {OURS: lambda: gptq(w, h, bits=4, group_size=GROUP)}
    if llm_compressor:
        candidates |= {
            "column loop": lambda: peers.original_gptq(tensor(w), tensor(h), GROUP).numpy(),
            "llm-compressor": lambda: llm_compressor(tensor(w), tensor(h), GROUP).numpy(),
        }
        if K <= 2048:
            candidates["onnxruntime"] = lambda: peers.onnxruntime_gptq(w, h, GROUP)
    candidates[LIMIT + "sgemm"] = multiply

    def loss(values) -> float:
        """trace(D H D^T) of values or of a quantized weight."""
        difference = w - (values if isinstance(values, np.ndarray) else values.dequantize())
        return float(np.vdot(difference @ h, difference))

    nearest = loss(rtn(w, bits=4, group_size=GROUP))
    rivals = ("llm-compressor", "column loop") if goal else ()
    return Case(
        PLOTTED,
        f"{M} x {K}",
        "float32",
        M * K * K + K**3 / 3,
        "GFLOP/s",
        candidates,
        tuple(Goal(OURS, rival, "<=0.2") for rival in rivals),
        {LIMIT + "sgemm": operations},
        note=lambda result: f"loss {loss(result) / nearest:.3f} of RTN's",
    )


def growth_rows(rows: list[Row]) -> list[Row]:
    """Time per M K² of each square layer against that of the next smaller one: it must not rise.

    5 % are allowed for the spread of times.
    """
    squares = [
        (row.seconds / size**3, size)
        for row in rows
        if row.op == PLOTTED and row.who == OURS
        for size, other in [map(int, row.shape.split(" x "))]
        if size == other
    ]
    return [
        figure(
            "GPTQ, time per M K²",
            f"{size} x {size}",
            slow * 1e12,
            "ps",
            limit=quick * 1e12,
            against=f"K={before}",
            slack=1.05,
        )
        for (quick, before), (slow, size) in pairwise(squares)
    ]


def measurements(quick: bool) -> list[Row]:
    """Run every case in turn, so that only one case's arrays are in memory at a time."""
    small = 16 if quick else 1
    K = 512 if quick else 4096
    rows: list[Row] = []
    for dtype in DTYPES:
        N = 16384 // small // (2 if dtype == "float64" else 1)
        rows += measure(scores_case(N, K, K, dtype), rounds=READS)
        rows += measure(scores_case(64, 64, 64 * N, dtype), rounds=READS)
        rows += measure(fisher_case(64, 256 * N, dtype), rounds=READS)
        rows += measure(fisher_case(16 * N, 1024, dtype), rounds=READS)
    for dtype in ("float32", "bfloat16", "float16"):
        rows += measure(hessian_case(2 * K, K, dtype, goal=True), rounds=15, budget=90)
        rows += measure(hessian_case(K // 8, K, dtype, goal=False))
    rows += measure(inverse_case(K, goal=True))
    rows += measure(columns_case(K, K, goal=True))
    llm_compressor = peers.LlmCompressor()
    sizes = (256, 512) if quick else (512, 1024, 2048, 4096, 8192)
    for size in sizes:
        rivals = llm_compressor if size <= K else None
        rows += measure(layer_case(size, size, rivals, goal=size == K))
    if not quick:
        rows += measure(layer_case(14336, K, llm_compressor, goal=False), rounds=3)
    rows += growth_rows(rows)
    rows += memory_rows(K, 2 * K)
    rows += startup_rows(1 if quick else 9)
    return rows


def main() -> int:
    """Measure, write the CSV and report; return 1 if a target is missed."""
    options = parser(__doc__)
    options.add_argument(
        "--quick",
        action="store_true",
        help="small shapes, to check the script; results go to the temporary directory",
    )
    arguments = options.parse_args()
    if "OPENBLAS_CORETYPE" in os.environ:
        print("warning: OPENBLAS_CORETYPE is set, so BLAS does not choose its own kernels")
    rows = measurements(arguments.quick)
    folder = Path(tempfile.gettempdir()) if arguments.quick else RESULTS
    file = write_csv("cpu", describe_machine(*PACKAGES), rows, folder)
    return report(file, docs=arguments.docs)


if __name__ == "__main__":
    sys.exit(main())
