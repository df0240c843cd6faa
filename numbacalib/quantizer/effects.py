"""Changes of what a model's head gets, by errors of each layer's outputs.

Losses of layers do not compare: an error of one passes the norms and layers behind it as it is, and that of
another hardly. So each layer is rounded once, roughly, and a few tokens run through the model with that
layer alone in its rounded form, beside those of the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.methods import proxy_loss, rtn
from numbacalib.models import Decoder, DecoderBlock
from numbacalib.ops.matrix import copied, joined_rows, to_host
from numbacalib.quantizer.text import evenly_spaced

SEQUENCES, LENGTH = 2, 128
"""Of the text, the tokens that run through every model."""
ROUGH_BITS = 3
"""Bits of a rounded layer: the change stands out of the rounding of 16-bit activations, and is small."""


class Effects:
    """Residual streams of a few tokens: of the original, and of it with one layer rounded, for every layer.

    Parameters
    ----------
    decoder : Decoder
        Of the original.
    tokens : integer array [S, T]
        Of the text.
    """

    def __init__(self, decoder: Decoder, tokens: NDArray[np.integer]) -> None:
        self._decoder = decoder
        some = tokens[evenly_spaced(len(tokens), min(SEQUENCES, len(tokens))), :LENGTH]
        self._original = decoder.embed(some)
        self._changed: list[tuple[list[str], Any]] = []
        self._losses: dict[str, float] = {}
        self._rounded: dict[str, Any] = {}

    def add_layers(
        self,
        block: DecoderBlock,
        weights: Mapping[str, Any],
        hessian: Any,
        *,
        group_size: int,
        symmetric: bool,
    ) -> None:
        """Round layers of one input, of the block that the streams are before."""
        grid: dict[str, Any] = {
            "bits": ROUGH_BITS,
            "group_size": group_size,
            "symmetric": symmetric,
        }
        for name, weight in weights.items():
            quantized = rtn(weight, **grid)
            self._losses[name] = proxy_loss(weight, quantized, hessian)
            self._rounded[name] = quantized.dequantize(block.dtype)

    def run(self, block: DecoderBlock) -> None:
        """Run all streams through a block, and from here on one for each of its rounded layers."""
        before = [stream for _, stream in self._changed]
        if self._rounded:
            streams = []
            for name, weight in self._rounded.items():
                changed = block.copied()
                changed.linears[name.removeprefix(f"{block.name}.")] = weight
                streams.append(changed.forward(copied(self._original)))
            shape = (-1, *self._original.shape[1:])
            rows = [stream.reshape(-1, shape[-1]) for stream in streams]
            self._changed.append((list(self._rounded), joined_rows(rows).reshape(shape)))
            self._rounded = {}
        for stream in (self._original, *before):
            block.forward(stream)

    def by_layer(self) -> dict[str, float]:
        """Mean squared change of the head's inputs, over the loss of the layer that is behind it."""
        found = {}
        own = to_host(self._decoder.head_inputs(self._original)).astype(np.float64)
        for names, stream in self._changed:
            inputs = to_host(self._decoder.head_inputs(stream)).astype(np.float64)
            squares = (inputs.reshape(len(names), *own.shape) - own) ** 2
            for name, square in zip(names, squares, strict=True):
                loss = self._losses[name]
                found[name] = float(square.mean()) / loss if loss else 0.0
        return found
