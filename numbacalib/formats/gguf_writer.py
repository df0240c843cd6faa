"""Writer of GGUF files, tensor by tensor in any order, since their sizes are known before.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.gguf_types import TensorType, type_numbers

ALIGNMENT = 32
"""Default alignment of tensors, in bytes."""

_VERSION = 3
_STRING, _ARRAY = 8, 9
_KINDS = {"uint32": 4, "int32": 5, "float32": 6, "bool": 7}
"""Numbers of the types of metadata that are written."""


class PlannedTensor(NamedTuple):
    """Type and NumPy shape of a tensor that will be written."""

    kind: TensorType
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape)) // self.kind.values * self.kind.size


def encoded(value: Any) -> bytes:
    """Encode a metadata value for the file, preceded by its type.

    Integers become uint32, floats float32; lists are of text, arrays of int32, float32 or bool.
    """
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, list):
        head = struct.pack("<IIQ", _ARRAY, _STRING, len(value))
        return head + b"".join(map(_text, value))
    if isinstance(value, np.ndarray):
        kind = _KINDS[value.dtype.name]
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + value.tobytes()
    dtype: Any = {bool: np.bool_, int: np.uint32, float: np.float32}[type(value)]
    number: NDArray[Any] = np.array(value, dtype)
    return struct.pack("<I", _KINDS[number.dtype.name]) + number.tobytes()


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


class GGUFWriter:
    """Writer of one file whose tensors are all planned; a context manager.

    Parameters
    ----------
    path : Path
    metadata : mapping of str to bytes
        Values from `encoded`.
    tensors : mapping of str to PlannedTensor
        In the order of the file.
    """

    def __init__(
        self, path: Path, metadata: Mapping[str, bytes], tensors: Mapping[str, PlannedTensor]
    ) -> None:
        self._path, self._tensors = path, tensors
        self._written = dict.fromkeys(tensors, 0)
        numbers, table, end = type_numbers(), [], 0
        begins = {}
        for name, tensor in tensors.items():
            begins[name] = end
            sizes = tensor.shape[::-1]  # from the fastest axis
            entry = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
            table.append(_text(name) + entry + struct.pack("<IQ", numbers[tensor.kind.name], end))
            end += -(-tensor.size // ALIGNMENT) * ALIGNMENT
        values = (_text(key) + value for key, value in metadata.items())
        counts = struct.pack("<4sIQQ", b"GGUF", _VERSION, len(tensors), len(metadata))
        header = b"".join([counts, *values, *table])
        self._header = header + bytes(-len(header) % ALIGNMENT)
        self._begins = {name: len(self._header) + begin for name, begin in begins.items()}
        self.planned_bytes = len(self._header) + end

    def add(self, name: str, part: NDArray[np.uint8], begin: int | None = None) -> None:
        """Write bytes of a tensor: the next ones, or those from `begin` on.

        Raises
        ------
        OSError
            If writing fails.
        """
        self._file.seek(self._begins[name] + (self._written[name] if begin is None else begin))
        self._file.write(np.ascontiguousarray(part).data)
        self._written[name] += part.size

    def __enter__(self) -> GGUFWriter:
        self._file: BinaryIO = self._path.open("wb")
        self._file.write(self._header)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._file:
            if kind is None:
                for name, tensor in self._tensors.items():
                    if self._written[name] != tensor.size:
                        raise ValueError(
                            f"{name}: expected {tensor.size} bytes, got {self._written[name]}"
                        )
                self._file.truncate(self.planned_bytes)
