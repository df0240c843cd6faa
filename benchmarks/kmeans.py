"""Codebooks of rows: the optimal ones against scikit-learn's k-means of each row, as in SqueezeLLM.

    python benchmarks/kmeans.py [--quick] [--docs]

SqueezeLLM (Kim et al., 2023) fits `sklearn.cluster.KMeans` to each row with Fisher information as
sample weights, with rows divided among processes. Ours quantizes all rows of a layer, scikit-learn the
first ones; times are per row. The note is the remaining weighted squared error of the first rows.
The goal is a hundred times the speed of scikit-learn row by row, in each shape. Writes
``results/kmeans-<machine>.csv``, and exits 1 if it is missed. Needs the extra `benchmarks`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
from harness import OURS, RESULTS, Case, Goal, describe_machine, measure, write_csv
from numpy.typing import NDArray
from report import parser, report
from tables import ERROR, KMEANS_PEER, KMEANS_PROCESSES

from numbacalib.methods import CodebookWeight, codebook

PACKAGES = ("numba", "numpy", "scikit-learn")
LAYER, ROWS = 4096, 64
"""Rows of a layer, and the number that scikit-learn quantizes."""


def sklearn_row(row: NDArray, importance: NDArray, bits: int) -> tuple[NDArray, NDArray]:
    """Codes and centroids of one row, with the settings of SqueezeLLM."""
    from sklearn.cluster import KMeans

    found = KMeans(2**bits, random_state=0, n_init="auto", max_iter=50)
    found.fit(row[:, None], sample_weight=importance)
    return found.labels_, found.cluster_centers_[:, 0]


def one_thread() -> None:
    """Limit a process of the pool to one thread."""
    import sklearn.cluster  # noqa: F401  (its OpenMP must be loaded to be limited)
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def sklearn_codebook(
    weight: NDArray, importance: NDArray, bits: int, pool: Pool | None
) -> CodebookWeight:
    """Quantize row after row, each on all cores, or rows in parallel by a pool of processes."""
    tasks = [(row, factors, bits) for row, factors in zip(weight, importance, strict=True)]
    found = (
        [sklearn_row(*task) for task in tasks] if pool is None else pool.starmap(sklearn_row, tasks)
    )
    codes, centroids = (np.stack(arrays) for arrays in zip(*found, strict=True))
    return CodebookWeight(codes, centroids, bits)


def kmeans_case(K: int, bits: int, pool: Pool) -> Case:
    """Return the case of rows of K normal weights, with importances as unequal as squared gradients."""
    rng = np.random.default_rng(K)
    weight = rng.normal(size=(LAYER, K)).astype(np.float32) * np.float32(0.02)
    importance = (rng.normal(size=(LAYER, K)) ** 2).astype(np.float32)
    few = weight[:ROWS], importance[:ROWS]

    def error(found: CodebookWeight) -> str:
        difference = found.dequantize(np.float64)[:ROWS] - few[0]
        return f"{ERROR}{(few[1] * difference**2).sum():.5g}"

    return Case(
        "k-means of a row",
        f"K={K} bits={bits}",
        "float32",
        K,
        "Gvalue/s",
        {
            OURS: lambda: codebook(weight, bits=bits, importance=importance),
            KMEANS_PEER: lambda: sklearn_codebook(*few, bits, None),
            KMEANS_PROCESSES: lambda: sklearn_codebook(*few, bits, pool),
        },
        (Goal(OURS, KMEANS_PEER, ">=100"),),
        works={OURS: weight.size, KMEANS_PEER: few[0].size, KMEANS_PROCESSES: few[0].size},
        note=error,
    )


def main() -> int:
    """Measure, write the CSV and print the table; return 1 if a target is missed."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "--quick", action="store_true", help="one shape; results go to the temporary directory"
    )
    options = arguments.parse_args()
    rows = []
    # not forked: a forked process would lack the threads of this one
    with get_context("spawn").Pool(len(os.sched_getaffinity(0)), one_thread) as pool:
        for K in (576,) if options.quick else (576, 1536, 4096):
            for bits in (4,) if options.quick else (3, 4):
                rows += measure(kmeans_case(K, bits, pool), rounds=7)
    folder = Path(tempfile.gettempdir()) if options.quick else RESULTS
    file = write_csv("kmeans", describe_machine(*PACKAGES), rows, folder)
    return report(file, docs=options.docs)


if __name__ == "__main__":
    sys.exit(main())
