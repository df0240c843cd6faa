"""CPU kernel of the Fisher information: one column reduction."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime.columns import column_power_means


def mean_squares(gradients: NDArray, dtype: np.dtype, out: NDArray | None) -> NDArray:
    """See `numbacalib.fisher_information`; the split among threads is that of the reduction."""
    return column_power_means(gradients, 2, dtype, out)
