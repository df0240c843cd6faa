"""The weights of one block, and the products and norms computed with them."""

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
"""An array where the model runs: NumPy's, or on a CUDA device."""


class Tables(Protocol):
    """Per-layer embeddings of tokens: see `numbacalib.models.layer_inputs`."""

    def rows(self, index: int, tokens: NDArray[np.int64]) -> Array:
        """Return a block's embeddings of tokens ``[n]``, float32 ``[n, layer_input_size]``."""


class BlockWeights:
    """The linear layers, norms and biases of a block.

    Attributes
    ----------
    linears : dict of str to array ``[M, K]``
        By short name, such as ``"mlp.down_proj"``.
    vectors : dict of str to float32 array
        Norms and biases by short name with ``.weight`` or ``.bias``; norms with the architecture's offset.
    read : callable
        From short names of experts' linear layers to their weights, read from the file on demand.
    tables : Tables, optional
        Per-layer embeddings that the block adds, if any.
    dtype : dtype
        Dtype of products: that of the weights as loaded.
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
        """Return a copy, which keeps its weights when those of this one are replaced."""
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
        """``x W^T + b`` with a part's rows of a layer, as one product over all tokens."""
        weight = cast(self.linears[part.name], self.dtype)
        bias = self.vectors.get(f"{part.name}.bias")
        if part.end - part.begin < part.rows:
            weight = row_range(weight, part.begin, part.end)
            bias = None if bias is None else row_range(bias, part.begin, part.end)
        return linear(x, weight, bias, add_to=add_to, dtype=dtype)

    def norm(
        self, name: str, x: Array, dtype: DTypeLike | None = None, eps: float | None = None
    ) -> Array:
        """Normalize vectors ``[..., K]``, or heads, by the named norm; `eps` overrides the model's."""
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
    """Normalize vectors by the architecture's kind of norm."""
    eps = config.rms_norm_eps if eps is None else eps
    if config.architecture.norm == "layer":
        return layer_norm(x, weight, bias, eps, dtype)
    return rms_norm(x, weight, eps, dtype)
