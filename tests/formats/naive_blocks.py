"""Blocks as float64 loops, written from their definitions. Imports nothing of the package."""

import numpy as np


def factors(weight, values, importance):
    """Weights of errors [M, K]: importance * sqrt(2 s + w**2), s the mean square of w's block."""
    found = np.empty(weight.shape)
    for i, row in enumerate(np.asarray(weight, np.float64)):
        for begin in range(0, len(row), values):
            block = row[begin : begin + values]
            spread = 2 * (block**2).mean() + 2.0**-100
            own = importance[begin : begin + values]
            found[i, begin : begin + values] = own * np.sqrt((spread + block**2) / spread)
    return found


def plain_error(weight, bits, group_size, minima, factors_of_rows):
    """Weighted squared error of rounding to min-max grids of each group, scales not rounded."""
    total, levels = 0.0, 2**bits - 1
    for row, importance in zip(np.asarray(weight, np.float64), factors_of_rows, strict=True):
        for begin in range(0, len(row), group_size):
            group = row[begin : begin + group_size]
            factors = importance[begin : begin + group_size]
            if minima:
                low = min(0.0, group.min())
                scale = (group.max() - low) / levels or 1.0
                values = np.clip(np.rint((group - low) / scale), 0, levels) * scale + low
            else:
                scale = 2 * np.abs(group).max() / levels or 1.0
                half = 2 ** (bits - 1)
                values = np.clip(np.rint(group / scale), -half, half - 1) * scale
            total += (factors * (values - group) ** 2).sum()
    return total
