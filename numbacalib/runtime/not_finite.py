"""Error for values that are not finite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


class NotFiniteError(ValueError):
    """Error of a value that is not finite where finite ones were expected."""


def not_finite(
    name: str, value: Any, index: int, shape: tuple[int, ...], limit: float = math.inf
) -> NotFiniteError:
    """Return the error for the value at a row-major index of an array of this shape."""
    where = ", ".join(str(int(i)) for i in np.unravel_index(index, shape))
    expected = "finite values"
    if math.isfinite(value):
        expected = f"magnitudes below {limit:.3g}"
    return NotFiniteError(f"{name}: expected {expected}, got {value} at [{where}]")
