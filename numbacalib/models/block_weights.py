"""The weights of one block, and what is computed with one of them alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numbacalib.models.config import ModelConfig
from numbacalib.models.layer_tensors import Part
from numbacalib.ops.layer_norm import layer_norm
from numbacalib.ops.linear import linear
from numbacalib.ops.matrix import cast, row_range
from numbacalib.ops.rms_norm import rms_norm

Array = Any
"""An array of the place that a model runs on: NumPy's, or on a CUDA device."""


class Tables(Protocol):
    """Vectors of tokens, for each block: see `numbacalib.models.layer_inputs`."""

    def rows(self, index: int, tokens: NDArray[np.int64]) -> Array:
        """The vectors of tokens ``[n]`` for a block, float32 ``[n, layer_input_size]``."""


class BlockWeights:
    """The linear layers, norms and biases of a block.

    Attributes
    ----------
    linears : dict of str to array ``[M, K]``
        By short name, such as ``"mlp.down_proj"``.
    vectors : dict of str to float32 array
        Norms and biases by short name with ``.weight`` or ``.bias``; norms as they multiply.
    read : callable
        Short names of linear layers to their weights, from the file: of experts, while they are needed.
    tables : Tables, optional
        Vectors of tokens that the block adds, where it adds some.
    dtype : dtype
        In what products are computed: that in which the weights came.
    """

    def __init__(
        self,
        config: ModelConfig,
        linears: dict[str, Array],
        vectors: dict[str, Array],
        read: Callable[[Iterable[str]], dict[str, Array]],
        tables: Tables | None = None,
    ) -> None:
        self.config = config
        self.read = read
        self.tables = tables
        self.linears = linears
        self.vectors = vectors
        self.dtype = np.dtype(next(iter(linears.values())).dtype)

    def copied(self) -> BlockWeights:
        """Return the same weights, which stay when those of this one are replaced."""
        own = dict(self.linears), dict(self.vectors)
        twin = BlockWeights(self.config, *own, self.read, self.tables)
        twin.dtype = self.dtype
        return twin

    def project(
        self,
        part: Part,
        x: Array,
        *,
        add_to: Array | None = None,
        dtype: DTypeLike | None = None,
    ) -> Array:
        """``x W^T + b`` with the rows of a part of a layer, as one product over all tokens."""
        weight = cast(self.linears[part.name], self.dtype)
        bias = self.vectors.get(f"{part.name}.bias")
        if part.end - part.begin < part.rows:
            weight = row_range(weight, part.begin, part.end)
            bias = None if bias is None else row_range(bias, part.begin, part.end)
        return linear(x, weight, bias, add_to=add_to, dtype=dtype)

    def norm(
        self, name: str, x: Array, dtype: DTypeLike | None = None, eps: float | None = None
    ) -> Array:
        """Normalize vectors ``[..., K]``, or heads, by the norm of a name; `eps` is its own, if any."""
        weight, bias = self.vectors[f"{name}.weight"], self.vectors.get(f"{name}.bias")
        return normalized(self.config, x, weight, bias, dtype or self.dtype, eps)


def normalized(
    config: ModelConfig,
    x: Array,
    weight: Array,
    bias: Array | None,
    dtype: DTypeLike,
    eps: float | None = None,
) -> Array:
    """Normalize vectors as the architecture does."""
    eps = config.rms_norm_eps if eps is None else eps
    if config.architecture.norm == "layer":
        return layer_norm(x, weight, bias, eps, dtype)
    return rms_norm(x, weight, eps, dtype)
