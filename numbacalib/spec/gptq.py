"""GPTQ: columns are quantized one by one, each one's error compensated in those after it.

With ``U`` the upper Cholesky factor of the inverse Hessian, ``H^-1 = U^T U``, column by column::

    q_j = grid(w_j);  e = (w_j - q_j) / U[j, j];  w[j+1:] -= e * U[j, j+1:]

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022),
algorithm 1. Kernels keep ``-e``, which is added. All rows of a column are divided by one pivot, by
multiplication with its rounded reciprocal. So ``e`` is within one and a half units in the last place of
the quotient, and the same on both targets.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numbacalib.runtime.jit import inlined
from numbacalib.spec.grid import Grid
from numbacalib.spec.range_search import RangeSearch


@inlined
def reciprocal(pivot):
    """``1 / U[j, j]`` in the pivot's own type."""
    return (pivot / pivot) / pivot


@inlined
def column_error(weight, value, pivot_reciprocal):
    """``-e`` of a weight that became a value of the grid."""
    return (value - weight) * pivot_reciprocal


@inlined
def compensated(weight, error, coupling):
    """Weight of a later column after ``-e`` of an earlier one; `coupling` is their entry of ``U``."""
    return weight + error * coupling


class ColumnGrids(NamedTuple):
    """Groups of the columns, with their scales, or with the search that finds them."""

    grid: Grid
    group_of: Any
    """Group of each column, int64 [E, K] for E runs of rows. Groups are runs of equal length, unless scales
    are given."""
    scales: Any = None
    """[E * M, G], already rounded for storage. By default those of a group are found at its first column,
    from the weights as compensated so far."""
    zeros: Any = None
    """[E * M, G], given together with scales."""
    search: RangeSearch | None = None
    """Search of the groups' ranges. By default they span each group's weights."""
    importance: Any = None
    """Weights of the search's errors, [1, K] or [E * M, K]."""


class GroupedCodes(NamedTuple):
    """Codes and grids that the column loop finds, before they are stored in any format."""

    codes: Any
    """uint8 [M, K], less the grid's least code."""
    scales: Any
    """[M, G], in the accumulators' type, already rounded to the storage type."""
    zeros: Any
    """[M, G], integers in the accumulators' type."""
    losses: Any
    """``sum_j e[i, j] ** 2`` of each row, float64 [M]: the row's share of ``trace(D H D^T)``."""


class FactorLook(NamedTuple):
    """Findings about a factor, or about a symmetric matrix in its place."""

    matrix: Any
    """The matrix in the form that kernels continue with."""
    bad: int | None
    """First diagonal entry that is not positive; subnormal numbers, without reciprocals, count as such."""
    entry: Any
    """The entry at `bad`, or None."""
    triangular: bool
    """True if nothing is below the diagonal."""
