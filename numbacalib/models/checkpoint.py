"""A model on disk: its tensors, configuration and tokenizer, independent of the file format."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.config import ModelConfig
from numbacalib.models.input_files import InputFiles
from numbacalib.models.safetensors_file import StoredTensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Checkpoint", "TensorInfo"]

FLOATS = ("float16", "bfloat16", "float32", "float64")


class TensorInfo(NamedTuple):
    """Shape and NumPy dtype of a tensor, known without reading it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Checkpoint(abc.ABC):
    """Read access to a checkpoint, by Hugging Face tensor names.

    Tensors stay on disk until `tensor` is called. Opening checks that the files are complete and that
    the architecture is supported.

    Attributes
    ----------
    path : Path
        The directory or file it was opened from.
    """

    path: Path

    @cached_property
    def files(self) -> InputFiles:
        """The files of the checkpoint."""
        return InputFiles()

    @property
    def dropped(self) -> dict[str, str]:
        """Tensors of the files that `names` omits, and the reasons."""
        return {}

    def check_unchanged(self) -> None:
        """Check that no file of the checkpoint, tokenizer included, changed since it was opened.

        Cheap enough for every block: compares sizes and modification times, not contents.

        Raises
        ------
        ValueError
            One line that names the file, if one was deleted, truncated, overwritten or replaced.
        """
        self.files.check_unchanged()

    @cached_property
    def config(self) -> ModelConfig:
        """Shape and options of the decoder."""
        return ModelConfig.from_hf(self.hf_config())

    @abc.abstractmethod
    def names(self) -> tuple[str, ...]:
        """The tensors' names, such as ``model.layers.0.self_attn.q_proj.weight``."""

    @abc.abstractmethod
    def info(self, name: str) -> TensorInfo:
        """Shape and dtype of what `tensor` returns, without reading it.

        Raises
        ------
        ValueError
            If the checkpoint has no tensor of that name.
        """

    def stored_bytes(self, name: str) -> int:
        """Bytes of what `tensor` returns, without reading it.

        Raises
        ------
        ValueError
            If the checkpoint has no tensor of that name.
        """
        shape, dtype = self.info(name)
        return math.prod(shape) * dtype.itemsize

    def file_bytes(self) -> int:
        """Bytes of the files that hold the tensors."""
        return sum(map(self.files.watch, self.weight_files()))

    @abc.abstractmethod
    def weight_files(self) -> set[Path]:
        """Files that hold the tensors."""

    @abc.abstractmethod
    def tensor(self, name: str) -> NDArray[Any]:
        """One tensor in its stored dtype, not writable; quantized GGUF tensors come as float32.

        Raises
        ------
        ValueError
            If the checkpoint has no tensor of that name.
        """

    def tiles(self, name: str, rows: int) -> Iterator[NDArray[Any]]:
        """Yield the result of `tensor` in tiles of ``rows`` rows, one in memory at a time if possible.

        Raises
        ------
        ValueError
            As `tensor`.
        """
        tensor = self.tensor(name)
        for first in range(0, len(tensor), rows):
            yield tensor[first : first + rows]

    def stored(self, name: str) -> StoredTensor:
        """Return a tensor for copying, byte for byte if the file is a safetensors file.

        Raises
        ------
        ValueError
            As `tensor`.
        """
        return StoredTensor.of(self.tensor(name))

    def stored_name(self, name: str) -> str:
        """Return transformers' name of a tensor, or of a part of a packed layer."""
        return name

    @abc.abstractmethod
    def hf_config(self) -> dict[str, Any]:
        """Return a copy of the contents of a Hugging Face ``config.json`` for this model."""

    @abc.abstractmethod
    def tokenizer_files(self) -> dict[str, bytes]:
        """Contents, by name, of the files that an output directory needs besides config and weights."""

    @property
    @abc.abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, read on first use.

        Raises
        ------
        ValueError
            If the checkpoint has none, or one of a kind that is not supported.
        """

    def require_floats(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that tensors exist, with these shapes and a floating-point dtype, without reading them.

        Raises
        ------
        ValueError
            Names the first one that fails.
        """
        names = set(self.names())
        missing = [name for name in shapes if name not in names]
        if missing:
            raise ValueError(f"{self.path}: {len(missing)} tensors are missing, first {missing[0]}")
        for name, shape in shapes.items():
            info = self.info(name)
            if info.shape != shape:
                raise ValueError(f"{self.path}: {name}: expected shape {shape}, got {info.shape}")
            if info.dtype.name not in FLOATS:
                raise ValueError(
                    f"{self.path}: {name}: expected {', '.join(FLOATS)}, got {info.dtype.name}"
                )

    def _unknown(self, name: str) -> ValueError:
        return ValueError(f"{self.path}: there is no tensor {name!r} in it")
