"""A short convolution between two gates, in place of a block's attention."""

from __future__ import annotations

from numbacalib.models.block_weights import Array, BlockWeights
from numbacalib.models.sublayers import Mixer
from numbacalib.ops.activation import activate
from numbacalib.ops.causal_convolution import causal_convolution
from numbacalib.ops.matrix import column_range

__all__ = ["ConvolutionMixer"]


class ConvolutionMixer(Mixer):
    """``c * convolution(b * v)``, with three projections b, c and v of each token.

    Parameters
    ----------
    weights : BlockWeights
    index : int
        The block's number.
    """

    def __init__(self, weights: BlockWeights, index: int) -> None:
        super().__init__(weights, index)
        convolution, names = (
            self._config.convolution_of(index),
            self._config.architecture.convolution,
        )
        assert convolution is not None
        assert names is not None
        self._taps = weights.vectors[f"{names.taps}.weight"].reshape(-1, convolution.taps)
        self.width = self._config.hidden_size

    def inner(self, x: Array) -> Array:
        """Gate, convolve over positions, gate again: ``[..., T, hidden_size]``."""
        *_, length, size = x.shape
        together = self._weights.project(self._parts["thirds"], x)
        first, second, values = (
            column_range(together, number * size, (number + 1) * size).reshape(-1, length, size)
            for number in range(3)
        )
        summed = causal_convolution(activate(first, "identity", values), self._taps)
        return activate(second, "identity", summed).reshape(x.shape)
