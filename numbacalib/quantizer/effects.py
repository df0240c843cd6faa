"""Changes of the inputs of a model's head due to errors of each layer's outputs.

Losses of different layers are not comparable: later norms and layers pass the error of one unchanged and
almost remove that of another. So each layer is coarsely rounded once, and a few tokens run through the
model with only that layer rounded, beside the original.
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
"""Sequences of the text, and tokens of each, that run through every model."""
ROUGH_BITS = 3
"""Bits of a rounded layer: the change is small, yet above the rounding of 16-bit activations."""


class Effects:
    """Residual streams of a few tokens: of the original, and for each layer of it with that layer rounded.

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
        """Round layers that share an input, in the block that the streams enter next."""
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
        """Run all streams through a block, and start one for each of its rounded layers."""
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
        """Mean squared change of the head's inputs, divided by the loss of the layer that caused it."""
        found = {}
        own = to_host(self._decoder.head_inputs(self._original)).astype(np.float64)
        for names, stream in self._changed:
            inputs = to_host(self._decoder.head_inputs(stream)).astype(np.float64)
            squares = (inputs.reshape(len(names), *own.shape) - own) ** 2
            for name, square in zip(names, squares, strict=True):
                loss = self._losses[name]
                found[name] = float(square.mean()) / loss if loss else 0.0
        return found
