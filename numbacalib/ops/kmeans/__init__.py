"""Optimal weighted k-means of each row of a matrix: in one dimension it can be solved exactly."""

from __future__ import annotations

from typing import Any

from numbacalib.ops.kmeans import cpu
from numbacalib.runtime.backend import call


def kmeans_rows(matrix: Any, clusters: int, importance: Any = None) -> tuple[Any, Any]:
    """Codes [M, K] and centroids [M, clusters] with the least error of all, row by row.

    The error of row i is ``sum_j importance[i, j] * (x[i, j] - centroids[i, codes[i, j]]) ** 2``.

    Parameters
    ----------
    matrix : array [M, K], float16, bfloat16, float32 or float64
        Finite.
    clusters : int
        1 to 256.
    importance : array [1, K] or [M, K] of the accumulators' dtype, optional
        Weights of the errors, not negative; all 1 by default. A value of weight 0 does not affect the
        centroids and gets the nearest; in a row of zeros all weights count as 1.

    Returns
    -------
    codes : uint8 array [M, K]
        The nearest centroid of each value, the lower one of two.
    centroids : array [M, clusters], float32 (float64 for a float64 matrix)
        Ascending. A row with fewer distinct values than clusters has these values, the largest
        repeated; no code points to a repetition.

    Notes
    -----
    The best cuts of the sorted values: Wang and Song, "Ckmeans.1d.dp: Optimal k-means Clustering in
    One Dimension by Dynamic Programming" (The R Journal, 2011). Instead of adding clusters one by one,
    each cluster costs a penalty, which is searched for: Aggarwal, Schieber and Tokuyama, "Finding a
    Minimum-Weight k-Link Path in Graphs with the Concave Monge Property and Applications" (1994);
    Grønlund et al., "Fast Exact k-Means, k-Medians and Bregman Divergence Clustering in 1D" (2017). It
    takes O(K log K) time a penalty, of which two to five are usually tried, for any number of clusters.
    Sums are float64. Where they are too coarse to find the least error to 1e-5 of it, as beside an outlier
    or a weight far above all others, a plain recurrence over clusters finds it from differences of
    neighbours, in milliseconds a row; distances and weights below about 1e-150 of the row's largest count
    as 0 there.
    """
    with call(cpu, None, matrix=matrix, importance=importance) as (kernels, matrix, importance):
        return kernels.kmeans_rows(matrix, clusters, importance)
