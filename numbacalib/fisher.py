"""Fisher information of parameters collected from a stream of gradients: mergeable, savable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.fisher_information import fisher_information
from numbacalib.runtime import checks
from numbacalib.runtime.finite import require_finite


class GradientStatistics:
    """Empirical diagonal Fisher information of one parameter, each sample weighing the same.

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
    A sample is what a gradient is taken of: the square is of the whole gradient, so the gradient of
    a batch's loss is one sample, and is not the same as the gradients of its members. Kim et al.,
    "SqueezeLLM: Dense-and-Sparse Quantization" (2023), section 4.1.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        sizes = [checks.integer("shape", size, 1, 1 << 62) for size in shape]
        self.samples = 0
        self.fisher: NDArray[np.float32] = np.zeros(sizes, np.float32)

    @property
    def fisher_sum(self) -> NDArray[np.float32]:
        """``sum_n g[n] ** 2``: larger the more was seen, as papers that add gradients up have it."""
        return self.fisher * np.float32(self.samples)

    def update(self, gradients: NDArray, mask: NDArray[np.bool_] | None = None) -> None:
        """Add gradients of samples, [N, ...] before the parameter's shape, or one without the N.

        Parameters
        ----------
        gradients : array [N, *shape] or [*shape], float16, bfloat16, float32 or float64
        mask : bool array [N], optional
            Samples that count; the others, which may hold anything, are left out. All by default.

        Raises
        ------
        ValueError
            If a shape differs, or a gradient that counts is not finite or its square is beyond
            float32; what was collected stays as it was.
        """
        shape = self.fisher.shape
        checks.floats("gradients", gradients)
        if gradients.shape == shape:
            gradients = gradients[None]
        if gradients.shape[1:] != shape or len(gradients) == 0:
            sizes = ", ".join(map(str, shape))
            raise ValueError(
                f"gradients: expected shape [N, {sizes}] or [{sizes}], got {list(gradients.shape)}"
            )
        if mask is not None:
            gradients = gradients[_checked_mask(mask, len(gradients))]
            if len(gradients) == 0:
                return
        samples = self.samples + len(gradients)
        with np.errstate(over="ignore"):
            found = fisher_information(gradients.reshape(len(gradients), -1)).astype(np.float32)
        require_finite("mean square of gradients", found[None])
        found *= np.float32(len(gradients) / samples)
        self.fisher *= np.float32(self.samples / samples)
        self.fisher += found.reshape(shape)
        self.samples = samples

    def merge(self, other: GradientStatistics) -> GradientStatistics:
        """Return the statistics of both sets of samples together."""
        if other.fisher.shape != self.fisher.shape:
            raise ValueError(
                f"other: expected shape {list(self.fisher.shape)}, got {list(other.fisher.shape)}"
            )
        merged = GradientStatistics(self.fisher.shape)
        merged.samples = self.samples + other.samples
        share = np.float32(self.samples / max(merged.samples, 1))
        merged.fisher = share * self.fisher + (1 - share) * other.fisher
        return merged


def _checked_mask(mask: NDArray[np.bool_], samples: int) -> NDArray[np.bool_]:
    if mask.dtype != np.bool_:
        raise TypeError(f"mask: expected dtype bool, got {mask.dtype}")
    if mask.shape != (samples,):
        raise ValueError(f"mask: expected shape [{samples}], got {list(mask.shape)}")
    return mask


def save_fisher(path: str | Path, statistics: Mapping[str, GradientStatistics]) -> None:
    """Write the statistics of named parameters to one safetensors file (extra `models`)."""
    from safetensors.numpy import save_file

    tensors: dict[str, NDArray] = {}
    for name, parameter in statistics.items():
        tensors[f"{name}.fisher"] = parameter.fisher
        tensors[f"{name}.samples"] = np.array(parameter.samples, np.int64)
    save_file(tensors, path)


def load_fisher(path: str | Path) -> dict[str, GradientStatistics]:
    """Read what `save_fisher` wrote, by parameter.

    Raises
    ------
    ValueError
        If the file is another kind of safetensors file.
    """
    from safetensors import safe_open

    statistics: dict[str, GradientStatistics] = {}
    with safe_open(path, framework="numpy") as file:
        keys = set(file.keys())
        names = sorted(key.removesuffix(".samples") for key in keys if key.endswith(".samples"))
        if keys != {f"{name}.{kind}" for name in names for kind in ("fisher", "samples")}:
            raise ValueError(f"{path}: expected statistics that save_fisher wrote")
        for name in names:
            fisher = file.get_tensor(f"{name}.fisher")
            parameter = statistics[name] = GradientStatistics(fisher.shape)
            parameter.fisher = fisher
            parameter.samples = int(file.get_tensor(f"{name}.samples"))
    return statistics
