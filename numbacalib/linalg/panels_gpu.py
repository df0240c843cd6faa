"""Cholesky factor of one large matrix, and solutions with it, in panels, most of it on tensor cores.

With the rows of panel p solved, ``U_pp^T U_p = A_p``, ``U_p^T U_p`` is subtracted from the rest. LAPACK's
routine factors the blocks of the diagonal; the Hessian update's kernel subtracts, float32 as two float16
matrices. No entry of a column of U exceeds the root of the column's diagonal entry in A, which gives all
panels one scale.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numbacalib.runtime import blas_gpu, device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.finite_gpu import FirstIndex
from numbacalib.runtime.launch import launch
from numbacalib.runtime.pairs_gpu import Pair, add_products

PANEL = 1024
"""Rows that are factored together."""
THREADS = 256


def factor_upper(matrix: Any, infos: Any) -> None:
    """Overwrite the upper triangle of a float32 matrix with ``U``, ``A = U^T U``, on capability 9.0.

    `infos`, int32 [panels], become 0 or the order of the leading minor of a panel that is not positive.
    """
    from numbacalib.ops.gptq_hessian_update import operands
    from numbacalib.runtime.moments_gpu import Operand, Target, add_square

    size = len(matrix)
    roots = device.empty((1, size), np.float32)
    launch(_roots, -(-size // THREADS), THREADS, matrix, roots)
    scales = operands.scales_of(roots.view(np.int32))
    halves = operands.empty_halves((PANEL, size))
    parts = operands.parts_of(halves, size)
    nothing_bad = FirstIndex().array
    for p, begin in enumerate(range(0, size, PANEL)):
        end = min(begin + PANEL, size)
        block = matrix[begin:end, begin:end]
        blas_gpu.cholesky_upper(block, infos[p : p + 1])
        if end < size:
            rest = matrix[begin:end, end:]
            blas_gpu.solve_columns(block, rest)
            operands.split_into(rest, scales[end:], halves[:, end // 2 :])
            left = matrix[end:, end:]
            target = Target(left, left, -1.0, 1.0, nothing_bad, mirror=False)
            add_square(Operand(parts, scales, end), target)


def solve_rows(upper: Any, rows: Any) -> None:
    """Overwrite float32 rows [M, K] with X, ``X (R R^T) = rows``, on capability 9.0.

    Products of solved panels, subtracted from the others, are those of pairs of bfloat16.
    """
    size = len(upper)
    factor, solved = Pair.of(upper), Pair.empty((1, *rows.shape))
    panels = [(begin, min(begin + PANEL, size)) for begin in range(0, size, PANEL)]
    for transposed in (True, False):
        for begin, end in reversed(panels) if transposed else panels:
            target = rows[:, begin:end]
            others = (end, size) if transposed else (0, begin)
            if others[0] < others[1]:
                # R^T is lower triangular: a column panel of it is a row panel of R
                right = factor.rows(begin, end).columns(*others)
                if not transposed:
                    right = factor.rows(*others).columns(begin, end)
                out = target.reshape(1, *target.shape)
                left = solved.columns(*others)
                add_products(left, right, out, factor=-1.0, transposed=transposed)
            blas_gpu.solve_triangle(upper[begin:end, begin:end], target, transposed=transposed)
            solved.columns(begin, end).fill(target.reshape(1, *target.shape))


@cuda.jit
def _roots(matrix, roots):
    """Roots of the diagonal. Threads: an entry each."""
    j = cuda.grid(1)
    if j < len(matrix):
        roots[0, j] = math.sqrt(matrix[j, j])
