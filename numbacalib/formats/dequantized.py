"""View of a quantized checkpoint as an unquantized one with dequantized weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.registry import stored_format
from numbacalib.models.checkpoint import Checkpoint, TensorInfo
from numbacalib.models.config import QUANTIZATION
from numbacalib.models.input_files import InputFiles
from numbacalib.models.safetensors_file import StoredTensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from numbacalib.formats.format import StoredLayers


def dequantized(checkpoint: Checkpoint) -> Checkpoint:
    """Return a view of a checkpoint with dequantized weights; an unquantized one itself.

    Raises
    ------
    ValueError
        If it is quantized in a format that is not supported.
    """
    form = stored_format(checkpoint)
    return (
        checkpoint if form is None else DequantizedCheckpoint(checkpoint, form.layers(checkpoint))
    )


class DequantizedCheckpoint(Checkpoint):
    """Contents of a checkpoint, with ``<layer>.weight`` float32 [M, K] for each quantized layer.

    Nothing is cached: a layer is read and dequantized on each access to its weight.
    """

    def __init__(self, source: Checkpoint, layers: StoredLayers) -> None:
        self.path = source.path
        self._source = source
        self._layers = {f"{layer}.weight": layer for layer in layers}
        self._stored = layers
        parts = {part for layer in layers for part in layers.tensors(layer)}
        kept = (name for name in source.names() if name not in parts)
        self._names = (*self._layers, *kept)

    @property
    def files(self) -> InputFiles:
        """The files of the checkpoint itself."""
        return self._source.files

    def weight_files(self) -> set[Path]:
        return self._source.weight_files()

    def names(self) -> tuple[str, ...]:
        return self._names

    def info(self, name: str) -> TensorInfo:
        if name in self._layers:
            return TensorInfo(self._stored.shape(self._layers[name]), np.dtype(np.float32))
        return self._source.info(name)

    def tensor(self, name: str) -> NDArray[Any]:
        if name in self._layers:
            return self._stored[self._layers[name]].dequantize()
        return self._source.tensor(name)

    def stored(self, name: str) -> StoredTensor:
        return super().stored(name) if name in self._layers else self._source.stored(name)

    def hf_config(self) -> dict[str, Any]:
        config = self._source.hf_config()
        return {key: value for key, value in config.items() if key not in QUANTIZATION}

    def tokenizer_files(self) -> dict[str, bytes]:
        return self._source.tokenizer_files()

    @property
    def tokenizer(self) -> Tokenizer:
        return self._source.tokenizer
