"""Factors of Hessians, and figures of the factorisation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.matrix import to_host

TINY = np.finfo(np.float64).tiny
"""Replaces the mean of a diagonal of zeros."""


FIGURES = 5
"""Numbers of a summary before the diagonals."""


Summary = NDArray[np.float64] | Callable[[], NDArray[np.float64]]
"""[E, 5 + 2 K], or a function that waits for it: damping, smallest diagonal entry, number of dead channels,
minor, and smallest pivot of each factor; then the diagonals of ``H`` and of ``R``, in the order."""


class HessianFactors:
    """Cholesky factors of E damped Hessians, whose channels may have been put into an order.

    On a GPU they may still be in progress: the first figure that is read waits for them.

    Attributes
    ----------
    upper : array [E, K, K]
        ``R``, upper triangular, C-contiguous, ``H + damping = R R^T`` for each, in the order.
    dead : bool array [E, K]
        Channels that no input ever excited, ``H[j, j] == 0``; in their original order.
    """

    def __init__(self, upper: Any, dead: Any, summary: Summary, orders: Any) -> None:
        self.upper = upper
        self.dead = dead
        self._summary = summary
        self._orders = orders

    @property
    def are_known(self) -> bool:
        """True if the figures can be read without waiting."""
        return isinstance(self._summary, np.ndarray)

    @cached_property
    def _figures(self) -> NDArray[np.float64]:
        return self._summary if isinstance(self._summary, np.ndarray) else self._summary()

    @property
    def dampings(self) -> list[float]:
        """Damping that was added to the diagonals of the live channels."""
        return self._figures[:, 0].tolist()

    @property
    def least(self) -> list[float]:
        """Smallest diagonal entries."""
        return self._figures[:, 1].tolist()

    @property
    def dead_counts(self) -> list[int]:
        """Numbers of dead channels."""
        return self._figures[:, 2].astype(int).tolist()

    @property
    def minors(self) -> list[int]:
        """0, or the order of the leading minor of the reversed matrix that is not positive.

        If it is not 0, the factor is not valid.
        """
        return self._figures[:, 3].astype(int).tolist()

    @property
    def diagonals(self) -> NDArray[np.float64]:
        """Diagonals of the Hessians before damping, in the order: [E, K]."""
        return self._figures[:, FIGURES : FIGURES + self.upper.shape[1]]

    @property
    def roots(self) -> NDArray[np.float64]:
        """Diagonals of the factors, [E, K]."""
        return self._figures[:, FIGURES + self.upper.shape[1] :]

    @property
    def smallest_pivots(self) -> list[float]:
        """Least pivots of live channels, as fractions of the mean diagonals; 0 if no channel is live."""
        return self._figures[:, 4].tolist()

    def error(self, index: int, name: str, percdamp: float) -> np.linalg.LinAlgError:
        """Return the error for a matrix, called `name`, that is not positive definite."""
        channel = self.upper.shape[1] - self.minors[index]
        if self._orders is not None:
            channel = to_host(self._orders)[index, channel]
        return np.linalg.LinAlgError(
            f"{name}: not positive definite at channel {channel} with damping "
            f"{self.dampings[index]:.3g} (percdamp {percdamp:g}), smallest diagonal entry "
            f"{self.least[index]:.3g}: raise percdamp, or calibrate on more tokens than channels"
        )
