"""Codebooks of rows: the optimal ones against scikit-learn's k-means of each row, as SqueezeLLM has it.

    python benchmarks/kmeans.py [--quick] [--readme]

SqueezeLLM (Kim et al., 2023) fits `sklearn.cluster.KMeans` to each row with Fisher information as
sample weights, rows shared out among processes. Ours takes a layer of rows, scikit-learn the first of
them; times are a row's. The note is the weighted squared error that is left in those.
The goal is a hundred times the speed of scikit-learn row by row, in each shape. Writes
``results/kmeans-<machine>.csv``, and exits 1 if it is missed. Needs the extra `benchmarks`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from itertools import groupby
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
from harness import OURS, RESULTS, Case, Goal, Row, describe_machine, measure, write_csv
from numpy.typing import NDArray
from report import shortfalls, update_readme

from numbacalib.methods import CodebookWeight, codebook
from numbacalib.quantizer.report import table

PACKAGES = ("numba", "numpy", "scikit-learn")
PEER = "scikit-learn, row by row"
IN_PROCESSES = "scikit-learn, a process a core"
LAYER, ROWS = 4096, 64
"""Rows of a layer, and those of them that scikit-learn takes."""
ERROR = "error "


def sklearn_row(row: NDArray, importance: NDArray, bits: int) -> tuple[NDArray, NDArray]:
    """Codes and centroids of one row, with the settings of SqueezeLLM."""
    from sklearn.cluster import KMeans

    found = KMeans(2**bits, random_state=0, n_init="auto", max_iter=50)
    found.fit(row[:, None], sample_weight=importance)
    return found.labels_, found.cluster_centers_[:, 0]


def one_thread() -> None:
    """Keep a process of the pool to its own core."""
    import sklearn.cluster  # noqa: F401  (its OpenMP must be loaded to be limited)
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def sklearn_codebook(
    weight: NDArray, importance: NDArray, bits: int, pool: Pool | None
) -> CodebookWeight:
    """Row after row, each on all cores, or each process of a pool its own rows."""
    tasks = [(row, factors, bits) for row, factors in zip(weight, importance, strict=True)]
    found = (
        [sklearn_row(*task) for task in tasks] if pool is None else pool.starmap(sklearn_row, tasks)
    )
    codes, centroids = (np.stack(arrays) for arrays in zip(*found, strict=True))
    return CodebookWeight(codes, centroids, bits)


def kmeans_case(K: int, bits: int, pool: Pool) -> Case:
    """A row of K normal weights, importances as unequal as squared gradients are."""
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
            PEER: lambda: sklearn_codebook(*few, bits, None),
            IN_PROCESSES: lambda: sklearn_codebook(*few, bits, pool),
        },
        (Goal(OURS, PEER, ">=100"),),
        works={OURS: weight.size, PEER: few[0].size, IN_PROCESSES: few[0].size},
        note=error,
    )


def markdown(machine: dict[str, str], rows: list[Row]) -> str:
    """One line a shape: times of a row, how many times faster ours is, and what error is left."""
    lines = []
    for shape, case in groupby(rows, key=lambda row: row.shape):
        found = {row.who: row for row in case}
        ours = found[OURS]
        excess = _error(found[PEER]) / _error(ours) - 1
        lines.append(
            [
                shape,
                *(f"{1e6 * row.seconds:.3g} us" for row in found.values()),
                f"{ours.share:.0f}{' (short)' if ours.falls_short else ''}",
                f"{found[IN_PROCESSES].seconds / ours.seconds:.0f}",
                f"{100 * excess:.1f} %",
            ]
        )
    mean = statistics.geometric_mean([row.share for row in rows if row.who == OURS])
    header = [
        "a row of",
        OURS,
        PEER,
        IN_PROCESSES,
        "times the faster row by row",
        "than processes",
        "its error above ours",
    ]
    caption = (
        f"{machine['machine']}, {machine['cores']} cores, {machine['date']}; {machine['versions']}. "
        f"Times faster row by row in the geometric mean: {mean:.0f}."
    )
    return f"{caption}\n\n{table(header, lines)}"


def _error(row: Row) -> float:
    return float(row.note.removeprefix(ERROR))


def main() -> int:
    """Measure, write the CSV and print the table; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="one shape; results go to the temporary directory"
    )
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    options = parser.parse_args()
    rows = []
    # not forked: the threads of this process would not be there
    with get_context("spawn").Pool(len(os.sched_getaffinity(0)), one_thread) as pool:
        for K in (576,) if options.quick else (576, 1536, 4096):
            for bits in (4,) if options.quick else (3, 4):
                rows += measure(kmeans_case(K, bits, pool), rounds=7)
    folder = Path(tempfile.gettempdir()) if options.quick else RESULTS
    machine = describe_machine(*PACKAGES)
    print(write_csv("kmeans", machine, rows, folder))
    text = markdown(machine, rows)
    print(text)
    if options.readme:
        update_readme("kmeans", text)
    missed = shortfalls(rows)
    print("\n".join(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
