"""A short convolution in the place of a block's attention, between two gates."""

from __future__ import annotations

from numbacalib.models.block_weights import Array, BlockWeights
from numbacalib.models.layer_tensors import attention_stages, parts
from numbacalib.models.sublayers import Sublayer
from numbacalib.ops.activation import activate
from numbacalib.ops.causal_convolution import causal_convolution
from numbacalib.ops.matrix import column_range

__all__ = ["ConvolutionMixer"]


class ConvolutionMixer(Sublayer):
    """``c * convolution(b * v)``, of three vectors of each token.

    Parameters
    ----------
    weights : BlockWeights
    index : int
        The block's number.
    """

    role = "attention"

    def __init__(self, weights: BlockWeights, index: int) -> None:
        super().__init__(weights)
        convolution, names = (
            self._config.convolution_of(index),
            self._config.architecture.convolution,
        )
        assert convolution is not None
        assert names is not None
        self._taps = weights.vectors[f"{names.taps}.weight"].reshape(-1, convolution.taps)
        self._parts = parts(self._config, index)
        entry, exit_ = attention_stages(self._config, index)
        self.entry_stages, self.exit_stages = (entry,), (exit_,)
        self.width = self._config.hidden_size

    def inner(self, x: Array) -> Array:
        """Gate, sum over positions, gate again: ``[..., T, hidden_size]``."""
        *_, length, size = x.shape
        together = self._weights.project(self._parts["thirds"], x)
        first, second, values = (
            column_range(together, number * size, (number + 1) * size).reshape(-1, length, size)
            for number in range(3)
        )
        summed = causal_convolution(activate(first, "identity", values), self._taps)
        return activate(second, "identity", summed).reshape(x.shape)

    def add_output(self, hidden: Array, inner: Array) -> Array:
        """Project that, and add it."""
        return self._add(hidden, self._parts["output"], inner)
