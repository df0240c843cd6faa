"""Fisher information of parameters collected from a stream of gradients: mergeable, savable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.fisher_information import fisher_information
from numbacalib.ops.matrix import blended, cast, scaled, take, to_host, zeros
from numbacalib.runtime import checks
from numbacalib.runtime.array import Array
from numbacalib.runtime.backend import arrays_of_one_device
from numbacalib.runtime.finite import require_finite, square_limit
from numbacalib.statistics.files import save_tensors
from numbacalib.statistics.reader import opened


class GradientStatistics:
    """Empirical diagonal Fisher information of one parameter, each sample weighing the same.

    It is kept on the device of the first gradients: a NumPy array, or a Numba device array.

    Parameters
    ----------
    shape : tuple of int
        The parameter's shape, for instance ``weight.shape``.

    Attributes
    ----------
    samples : int
        Gradients seen.
    fisher : float32 array of the parameter's shape
        ``mean_n g[n] ** 2`` over every gradient seen; 0 before the first.

    Notes
    -----
    A sample is the loss of which one gradient is taken. Gradients are squared as a whole: that of a
    batch's loss is one sample, and differs from those of the batch's members. Kim et al., "SqueezeLLM:
    Dense-and-Sparse Quantization" (2023), section 4.1.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        if not isinstance(shape, Sequence) or not shape:
            raise TypeError(f"shape: expected a tuple of at least one size, got {shape!r}")
        sizes = [checks.integer("shape", size, 1, 1 << 62) for size in shape]
        self.samples = 0
        self.fisher: Any = np.zeros(sizes, np.float32)

    @property
    def fisher_sum(self) -> Array:
        """``sum_n g[n] ** 2``, which grows with the samples: some papers sum where others average."""
        return scaled(self.fisher, float(self.samples))

    def update(self, gradients: Array, mask: Array | None = None) -> None:
        """Add gradients of N samples, or of one sample without the axis N.

        Parameters
        ----------
        gradients : array [N, *shape] or [*shape], float16, bfloat16, float32 or float64
        mask : bool array [N], optional
            Samples to include, by default all; the others may hold any values. A mask may be on the host
            when the gradients are on a GPU.

        Raises
        ------
        ValueError, TypeError
            If a shape differs, a gradient that counts is not finite or too large for float32 to hold the
            sum of squares (the first index among those that count is named), or the gradients are on
            another device than those before; what was collected stays as it was.
        """
        with arrays_of_one_device(gradients=gradients) as (gradients,):
            flat = self._as_rows(gradients)
            if mask is not None:
                counted = np.flatnonzero(_checked_mask(mask, len(flat)))
                if len(counted) == 0:
                    return
                gradients = flat = take(flat, counted, 0)
            found = cast(fisher_information(flat), np.float32)
            try:
                require_finite("gradients", found.reshape(1, -1))
            except ValueError:  # rare: name the gradient's index, which the caller knows
                require_finite("gradients", gradients, square_limit(len(flat)))
                raise
            shape = self.fisher.shape
            before = self.fisher if self.samples else zeros(shape, like=found)
            samples = self.samples + len(flat)
            self.fisher = blended(before, found.reshape(*shape), self.samples / samples)
            self.samples = samples

    def _as_rows(self, gradients: Any) -> Any:
        """Check gradients, one or several, and return them as a matrix of one row a sample."""
        checks.floats("gradients", gradients)
        shape, given = self.fisher.shape, tuple(gradients.shape)
        if given != shape and (given[1:] != shape or given[0] == 0):
            sizes = ", ".join(map(str, shape))
            raise ValueError(
                f"gradients: expected shape [N, {sizes}] or [{sizes}], got {list(given)}"
            )
        return checks.viewed("gradients", gradients, math.prod(shape))

    def merge(self, other: GradientStatistics) -> GradientStatistics:
        """Return the statistics of both sets of samples together."""
        if other.fisher.shape != self.fisher.shape:
            raise ValueError(
                f"other: expected shape {list(self.fisher.shape)}, got {list(other.fisher.shape)}"
            )
        merged = GradientStatistics(self.fisher.shape)
        merged.samples = self.samples + other.samples
        # statistics that have seen nothing may be on another device
        left, right = (self if self.samples else other), (other if other.samples else self)
        share = self.samples / max(merged.samples, 1)
        merged.fisher = blended(left.fisher, right.fisher, share)
        return merged


def _checked_mask(mask: Any, samples: int) -> NDArray[np.bool_]:
    """Check a mask and return it on the host."""
    with arrays_of_one_device(mask=mask) as (mask,):
        if mask.dtype != np.bool_:
            raise TypeError(f"mask: expected dtype bool, got {mask.dtype}")
        if tuple(mask.shape) != (samples,):
            raise ValueError(f"mask: expected shape [{samples}], got {list(mask.shape)}")
        return to_host(mask)


_PARTS = ("fisher", "samples")


def save_fisher(path: str | Path, statistics: Mapping[str, GradientStatistics]) -> None:
    """Write the statistics of named parameters to one safetensors file (extra `models`).

    Parameters
    ----------
    path : str or Path
    statistics : mapping of str to GradientStatistics
        Of the parameters, by name.

    Raises
    ------
    OSError
        If writing fails; no new file is then left at `path`.

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib.statistics import GradientStatistics, save_fisher
    >>> statistics = GradientStatistics((2,))
    >>> statistics.update(np.array([[1, 2], [3, 0]], np.float32))
    >>> save_fisher("fisher.safetensors", {"q_proj": statistics})
    """
    tensors: dict[str, NDArray] = {}
    for name, parameter in statistics.items():
        tensors[f"{name}.fisher"] = to_host(parameter.fisher)
        tensors[f"{name}.samples"] = np.array(parameter.samples, np.int64)
    save_tensors(path, tensors)


def load_fisher(path: str | Path) -> dict[str, GradientStatistics]:
    """Read what `save_fisher` wrote, by parameter.

    Parameters
    ----------
    path : str or Path
        Of a safetensors file (extra `models`).

    Returns
    -------
    dict of str to GradientStatistics

    Raises
    ------
    OSError, ValueError
        As `load_statistics`.

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib.statistics import GradientStatistics, load_fisher, save_fisher
    >>> statistics = GradientStatistics((2,))
    >>> statistics.update(np.array([[1, 2], [3, 0]], np.float32))
    >>> save_fisher("fisher.safetensors", {"q_proj": statistics})
    >>> load_fisher("fisher.safetensors")["q_proj"].fisher
    array([5., 2.], dtype=float32)
    """
    statistics: dict[str, GradientStatistics] = {}
    with opened(path, "save_fisher") as file:
        names = sorted(
            name.removesuffix(".samples") for name in file.names if name.endswith(".samples")
        )
        if not names or file.names != {f"{name}.{part}" for name in names for part in _PARTS}:
            raise file.error("expected statistics that save_fisher wrote, got other tensors")
        for name in names:
            fisher = file.array(f"{name}.fisher")
            parameter = statistics[name] = GradientStatistics(fisher.shape)
            parameter.fisher = fisher
            parameter.samples = file.count(f"{name}.samples")
    return statistics
