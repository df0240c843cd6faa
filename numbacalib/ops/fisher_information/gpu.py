"""GPU form of the Fisher information: one column reduction."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.runtime import columns_gpu, device
from numbacalib.runtime.half import carrier


def mean_squares(gradients: Any, dtype: np.dtype, out: Any) -> Any:
    """See `numbacalib.fisher_information`."""
    source: Any = carrier(gradients)
    samples = dtype.type(len(gradients))
    return device.result(columns_gpu.column_sums(source, columns_gpu.SQUARES, samples, out))
