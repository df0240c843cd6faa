"""A model on disk: its tensors, configuration and tokenizer, whatever the file format."""

from __future__ import annotations

import abc
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.config import ModelConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint"]


class TensorInfo(NamedTuple):
    """Shape and NumPy dtype of a tensor, known without reading it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Checkpoint(abc.ABC):
    """Read access to a checkpoint, by Hugging Face tensor names.

    Tensors stay on disk until `tensor` is called. Opening checks that the files are whole and that
    the architecture is supported.

    Attributes
    ----------
    path : Path
        The directory or file it was opened from.
    """

    path: Path
    _opened: dict[Path, tuple[int, int]]

    def check_unchanged(self) -> None:
        """Check that no file has been replaced, cut or written since it was opened.

        Raises
        ------
        ValueError
            Naming the file.
        """
        for file, stamp in self._opened.items():
            if _stamp(file) != stamp:
                raise ValueError(f"{file}: was changed while it was read")

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

    @abc.abstractmethod
    def tensor(self, name: str) -> NDArray[Any]:
        """One tensor in its stored dtype, not writable; quantized GGUF tensors come as float32.

        Raises
        ------
        ValueError
            If the checkpoint has no tensor of that name.
        """

    @abc.abstractmethod
    def hf_config(self) -> dict[str, Any]:
        """The contents of a Hugging Face ``config.json`` for this model; a fresh copy."""

    @abc.abstractmethod
    def tokenizer_files(self) -> dict[str, bytes]:
        """File name to contents of what an output directory needs besides config and weights."""

    @property
    @abc.abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, read when first asked for.

        Raises
        ------
        ValueError
            If the checkpoint has none, or one of a kind that is not supported.
        """

    def _unknown(self, name: str) -> ValueError:
        return ValueError(f"{self.path}: there is no tensor {name!r} in it")


def _stamp(file: Path) -> tuple[int, int]:
    """Size and time of modification in nanoseconds; -1 for a file that is gone."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a Hugging Face directory or a GGUF file.

    Parameters
    ----------
    path : str or Path
        A directory with ``config.json`` and ``*.safetensors``, or a ``.gguf`` file.

    Returns
    -------
    Checkpoint

    Raises
    ------
    FileNotFoundError
        If there is nothing at ``path``.
    ValueError
        If it is neither of the two, damaged or cut short, or of an architecture that is not
        supported. The message is one line that names the file.
    """
    # Imported here because both readers derive from Checkpoint.
    from numbacalib.models.gguf import GGUFCheckpoint
    from numbacalib.models.huggingface import HuggingFaceCheckpoint

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or directory")
    checkpoint: Checkpoint
    if path.is_dir():
        checkpoint = HuggingFaceCheckpoint(path)
    elif path.suffix == ".gguf":
        checkpoint = GGUFCheckpoint(path)
    else:
        raise ValueError(f"{path}: expected a directory with config.json, or a .gguf file")
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    checkpoint._opened = {file: _stamp(file) for file in files}
    try:
        checkpoint.config  # noqa: B018  (an unsupported architecture is an error now, not later)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return checkpoint
