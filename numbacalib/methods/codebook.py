"""Non-uniform quantization: each row's weights to the nearest entries of the row's own codebook."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numbacalib.methods.settings import non_negative
from numbacalib.ops.kmeans import kmeans_rows
from numbacalib.runtime import checks
from numbacalib.runtime.backend import arrays_of_one_device, is_cuda_array
from numbacalib.runtime.finite import require_finite


@dataclass(frozen=True)
class CodebookWeight:
    """Codes and codebooks of one linear layer's weight [M, K]: ``centroids[i, codes[i, j]]``."""

    codes: NDArray[np.uint8]
    """[M, K], in ``[0, 2 ** bits - 1]``."""
    centroids: NDArray[np.float32]
    """[M, 2 ** bits], ascending in each row."""
    bits: int

    @property
    def group_size(self) -> int:
        """Input channels that share a codebook: K."""
        return self.codes.shape[1]

    def dequantize(self, dtype: DTypeLike = np.float32) -> NDArray:
        """Return the weights that the codes stand for, [M, K]."""
        centroids = self.centroids.astype(checks.float_dtype("dtype", dtype), copy=False)
        return np.take_along_axis(centroids, self.codes, axis=1)


def codebook(weight: NDArray, *, bits: int, importance: NDArray | None = None) -> CodebookWeight:
    """Quantize a weight to the codebooks with the least weighted squared error, row by row.

    It takes NumPy arrays only: codebooks are found on the CPU.

    Parameters
    ----------
    weight : array [M, K], float16, bfloat16, float32 or float64
    bits : int
        2 to 8: ``2 ** bits`` entries a row.
    importance : array [K] or [M, K], optional
        Weights of the errors: Fisher information, as in the dense part of SqueezeLLM, or the mean
        square of each input channel. Weights of importance 0 take the nearest entry.

    Returns
    -------
    CodebookWeight

    Raises
    ------
    ValueError, TypeError
        If a setting does not fit, or a weight is beyond float32 (the first index is named).

    Notes
    -----
    Kim et al., "SqueezeLLM: Dense-and-Sparse Quantization" (2023), section 4.1, equation 4. They
    approximate it with Lloyd's iterations; here it is solved exactly (see `numbacalib.ops.kmeans`).

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib.methods import codebook
    >>> quantized = codebook(np.array([[1, 1, 2, 8, 9, 9]], np.float32), bits=2)
    >>> quantized.centroids
    array([[1., 2., 8., 9.]], dtype=float32)
    >>> quantized.codes
    array([[0, 0, 1, 2, 3, 3]], dtype=uint8)
    """
    for name, array in (("weight", weight), ("importance", importance)):
        if is_cuda_array(array):
            raise TypeError(f"{name}: expected a NumPy array, since codebooks are found on the CPU")
    with arrays_of_one_device(weight=weight, importance=importance) as (weight, importance):
        rows, channels = checks.matrix("weight", weight, ("M", "K"))
        require_finite("weight", weight, float(np.finfo(np.float32).max))
        bits = checks.integer("bits", bits, 2, 8)
        if importance is not None:
            importance = non_negative("importance", importance, [(channels,), (rows, channels)])
            importance = _narrowed(importance, checks.result_dtype(weight))
        codes, centroids = kmeans_rows(weight, 2**bits, importance)
        return CodebookWeight(codes, centroids.astype(np.float32, copy=False), bits)


def _narrowed(importance: NDArray, dtype: np.dtype) -> NDArray:
    """Return importances in a dtype; rows of float64 are scaled to fit it, since only ratios matter."""
    if importance.dtype == np.float64 and dtype == np.float32:
        largest = importance.max(axis=1, keepdims=True)
        importance = np.divide(
            importance, largest, where=largest > 0, out=np.zeros_like(importance)
        )
    return importance.astype(dtype, copy=False)
