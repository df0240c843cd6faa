"""GPTQ: what its column loop finds."""

from __future__ import annotations

from typing import Any, NamedTuple


class GroupedCodes(NamedTuple):
    """What the column loop finds, before it is stored in any format."""

    codes: Any
    """uint8 [M, K], less the grid's least code."""
    scales: Any
    """[M, G], in the accumulators' type, already rounded to the storage type."""
    zeros: Any
    """[M, G], integers in the accumulators' type."""
    losses: Any
    """``sum_j e[i, j] ** 2`` of each row, float64 [M]: the row's share of ``trace(D H D^T)``."""
