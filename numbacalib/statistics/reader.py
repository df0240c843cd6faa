"""Statistics on disk: safetensors files whose tensors are checked as they are read."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime.extras import extra

__all__ = ["StatisticsFile", "opened"]

_MOST_DIMENSIONS = 64
"""Most dimensions of NumPy's arrays."""


class StatisticsFile:
    """An open file of statistics, whose tensors are checked when they are read.

    Attributes
    ----------
    names : set of str
        Names of its tensors.
    metadata : dict of str to str
    """

    def __init__(self, path: Path, file: Any) -> None:
        self._path = path
        self._file = file
        self.names = set(file.keys())
        self.metadata: dict[str, str] = file.metadata() or {}

    def error(self, message: str) -> ValueError:
        """Return the error to raise, with the file's name."""
        return ValueError(f"{self._path}: {_printable(message)}")

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header alone; the tensor must exist."""
        if name not in self.names:
            raise self.error(f"{name}: expected such a tensor, got none")
        return tuple(self._file.get_slice(name).get_shape())

    def array(
        self,
        name: str,
        shape: tuple[int | None, ...] | None = None,
        *,
        dtypes: Collection[str] = ("F32",),
        negative: bool = False,
    ) -> NDArray[Any]:
        """Read a tensor of finite values.

        Parameters
        ----------
        name : str
        shape : tuple of (int or None), optional
            Expected shape, with None for any length above 0; any shape by default.
        dtypes : collection of str
            Accepted dtypes, by safetensors' names.
        negative : bool
            Accept values below 0.

        Raises
        ------
        ValueError
            If the tensor is missing or not as expected. The message names the file and the tensor.
        """
        found = self.shape(name)
        expected = (None,) * min(len(found), _MOST_DIMENSIONS) if shape is None else shape
        fits = len(found) == len(expected) and all(
            size == wanted if wanted is not None else size > 0
            for size, wanted in zip(found, expected, strict=True)
        )
        dtype = self._file.get_slice(name).get_dtype()
        if not fits or dtype not in dtypes:
            sizes = "any shape" if shape is None else list(shape)
            raise self.error(
                f"{name}: expected {' or '.join(dtypes)} of {sizes}, got {dtype} of {list(found)}"
            )
        array: NDArray[Any] = self._file.get_tensor(name)
        # min and max of an array with NaN are NaN
        low, high = float(array.min()), float(array.max())
        if not (np.isfinite(low) and np.isfinite(high) and (negative or low >= 0)):
            kind = "finite values" if negative else "finite values of 0 and more"
            raise self.error(f"{name}: expected {kind}, got {low:g} to {high:g}")
        return array

    def count(self, name: str) -> int:
        """Read a scalar int64 that counts something."""
        return int(self.array(name, (), dtypes=("I64",)))


@contextmanager
def opened(path: str | Path, writer: str) -> Iterator[StatisticsFile]:
    """Open a file that the function `writer` wrote (extra `models`).

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is damaged or not a safetensors file. The message is one line that names the file.
    """
    with extra("models"):
        import ml_dtypes  # noqa: F401  (teaches NumPy bfloat16, which safetensors asks for by name)
        from safetensors import SafetensorError, safe_open

    path = Path(path)
    if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
        raise ValueError(
            f"{path}: expected what {writer} wrote, got a directory, a pipe or a device"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            yield StatisticsFile(path, file)
    except SafetensorError as error:
        raise ValueError(
            f"{path}: expected what {writer} wrote, got a damaged file or another kind: "
            f"{_printable(str(error))}"
        ) from None


def _printable(message: str) -> str:
    """Return a message as one line, even if the file's names have line breaks."""
    return "".join(letter if letter.isprintable() else " " for letter in message)
