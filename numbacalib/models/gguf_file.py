"""GGUF files as containers: typed metadata, a table of tensors, and values read on demand.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Files that llama.cpp's reader
(``ggml/src/gguf.cpp``) refuses are refused here too. The reader of the ``gguf`` package is not used, since
it trusts every count in the file: 45 bytes make it allocate without limit.
"""

from __future__ import annotations

import io
import math
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.gguf_metadata import Metadata
from numbacalib.models.gguf_types import TensorType, read_values, require_readable, tensor_type

__all__ = ["MAGIC", "GGUFFile", "TensorEntry", "is_gguf", "named"]

MAGIC = b"GGUF"
_ALIGNMENT = "general.alignment"
_LONGEST_HEADER = 1 << 28
"""Bytes; a vocabulary of 262,144 tokens with its merges takes 2**24."""
_LONGEST_KEY = (1 << 16) - 1
_LONGEST_NAME = 64
_MOST_DIMENSIONS = 4

_INTEGER, _BOOLEAN, _STRING, _ARRAY = struct.Struct("<I"), 7, 8, 9
_LENGTH = struct.Struct("<Q")
_SCALARS = {
    kind: np.dtype(layout)
    for kind, layout in zip(
        (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12),
        ("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", "<u8", "<i8", "<f8"),
        strict=True,
    )
}


class TensorEntry(NamedTuple):
    """A tensor of the table: its stored type, its shape in NumPy's order, and its first byte."""

    kind: TensorType
    shape: tuple[int, ...]
    begin: int

    @property
    def end(self) -> int:
        """First byte after the tensor."""
        return self.begin + math.prod(self.shape) // self.kind.values * self.kind.size

    def part(self, index: int, count: int) -> TensorEntry:
        """Return one of `count` equal matrices, or vectors, of a stack."""
        length = (self.end - self.begin) // count
        rest = self.shape[2:]
        shape = (math.prod(self.shape) // count // math.prod(rest), *rest)
        return self._replace(shape=shape, begin=self.begin + index * length)

    def rows(self, first: int, last: int) -> TensorEntry:
        """Return rows ``first`` to ``last - 1``, or a slice along the first axis."""
        length = (self.end - self.begin) // self.shape[0]
        shape = (last - first, *self.shape[1:])
        return self._replace(shape=shape, begin=self.begin + first * length)


class GGUFFile:
    """A GGUF file; only its header is read until `read` is called.

    The file is neither kept open nor mapped: each `read` opens it again and refuses one that has changed,
    so that a file truncated during a run raises an exception instead of a bus error.

    Parameters
    ----------
    path : str or Path

    Attributes
    ----------
    path : Path
    metadata : Metadata
    tensors : dict of str to TensorEntry
        In file order.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is not a GGUF file of version 2 or 3, or is damaged or truncated. The message is one line
        that names the file and the key or tensor.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with named(self.path), _open(self.path, io.DEFAULT_BUFFER_SIZE) as file:
            self._state = _state(file)
            size = self._state[0]
            header = _read_header(_Cursor(file, size), size)
            self.metadata, self.tensors, self._spans = header

    def read(self, name: str, part: TensorEntry | None = None) -> NDArray[Any]:
        """Read the tensor, or a part of it: plain types in their own dtype, quantized ones as float32.

        Raises
        ------
        KeyError
            If there is no tensor of that name.
        ValueError
            If the file has changed since it was opened, the tensor's type cannot be dequantized, or its
            values do not fit into memory.
        """
        entry = part or self.tensors[name]
        count = math.prod(entry.shape)
        with self._reopened() as file:
            file.seek(entry.begin)
            try:
                with named(name):
                    values = read_values(entry.kind, count, lambda piece: _fill(file, piece))
            except MemoryError:
                raise ValueError(f"{name}: its {count} values do not fit into memory") from None
        return values.reshape(entry.shape)

    def read_bytes(self, name: str, part: TensorEntry | None = None) -> NDArray[np.uint8]:
        """Read the stored bytes of the tensor, or of a part of it.

        Raises
        ------
        KeyError, ValueError
            As `read`.
        """
        entry = part or self.tensors[name]
        stored = np.empty(entry.end - entry.begin, np.uint8)
        with self._reopened() as file:
            file.seek(entry.begin)
            _fill(file, stored)
        return stored

    def metadata_bytes(self) -> dict[str, bytes]:
        """Read all metadata by key, with each value's type and bytes as in the file.

        Raises
        ------
        ValueError
            If the file has changed since it was opened.
        """
        with self._reopened() as file:
            header = np.empty(max((end for _, end in self._spans.values()), default=0), np.uint8)
            _fill(file, header)
        return {key: header[begin:end].tobytes() for key, (begin, end) in self._spans.items()}

    @contextmanager
    def _reopened(self) -> Iterator[Any]:
        with named(self.path), _open(self.path, 0) as file:
            if _state(file) != self._state:
                raise ValueError("the file has changed since it was opened")
            yield file

    def require_readable(self) -> None:
        """Raise a `ValueError` that names the first tensor whose type cannot be dequantized."""
        checked = set()
        for name, entry in self.tensors.items():
            if entry.kind not in checked:
                with named(self.path), named(name):
                    require_readable(entry.kind)
                checked.add(entry.kind)


@contextmanager
def named(what: str | Path) -> Iterator[None]:
    """Put a name before the message of a `ValueError`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def is_gguf(path: str | Path) -> bool:
    """Return whether a regular file begins with GGUF's magic bytes, whatever its name."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _open(path: Path, buffering: int) -> Any:
    """Open a regular file; opening a pipe would wait for a writer."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("expected a GGUF file, got a directory, a pipe or a device")
    return path.open("rb", buffering=buffering)


def _state(file: Any) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def _fill(file: Any, array: NDArray[np.uint8]) -> None:
    """Read bytes until the array is full; one system call returns at most 2 GiB."""
    view = array.data
    while view:
        count = file.readinto(view)
        if not count:
            raise ValueError("truncated while it was read")
        view = view[count:]


class _Cursor:
    """Sequential reader of a header, which never reads past the end of the file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._limit = min(size, _LONGEST_HEADER)
        self._size = size
        self.position = 0

    def take(self, count: int) -> bytes:
        if count > self._limit - self.position:
            self._stop()
        data = self._file.read(count)
        if len(data) != count:
            self._stop()
        self.position += count
        return data

    def count(self, smallest: int, what: str) -> int:
        """Read a count of items of at least `smallest` bytes each, and check that they fit in the rest."""
        (count,) = _LENGTH.unpack(self.take(8))
        left = self._limit - self.position
        if count * smallest > left:
            raise ValueError(
                f"truncated or damaged, {what}: expected at most {left // smallest} in the {left} bytes "
                f"that are left, got {count}"
            )
        return int(count)

    def number(self) -> int:
        return int(_INTEGER.unpack(self.take(4))[0])

    def name(self, longest: int) -> str:
        """Read a key or tensor name, printable so that one-line errors can show it."""
        name = self.string(longest)
        if not name.isprintable():
            raise ValueError(f"damaged header: expected a printable name, got {name[:60]!r}")
        return name

    def string(self, longest: int = _LONGEST_HEADER) -> str:
        (length,) = _LENGTH.unpack(self.take(8))
        if length > longest:
            raise ValueError(
                f"damaged header: expected a name of at most {longest} bytes, got {length}"
            )
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise ValueError("expected text in UTF-8, got other bytes") from None

    def _stop(self) -> None:
        if self._limit < self._size:
            raise ValueError(f"damaged header: expected its end within {self._limit} bytes")
        raise ValueError(f"truncated, the header goes on beyond the file's {self._size} bytes")


_Spans = dict[str, tuple[int, int]]
"""First byte and end of the metadata values, by key."""


def _read_header(cursor: _Cursor, size: int) -> tuple[Metadata, dict[str, TensorEntry], _Spans]:
    if size < 4 or cursor.take(4) != MAGIC:
        raise ValueError("not a GGUF file, the first four bytes are not GGUF")
    _check_version(cursor.number())
    # least sizes: a string has 8 bytes and more, a type 4, a dimension 8, an offset 8
    tensor_count = cursor.count(8 + 4 + 8 + 4 + 8, "number of tensors")
    value_count = cursor.count(8 + 4 + 1, "number of metadata")
    values: dict[str, Any] = {}
    spans: _Spans = {}
    for _ in range(value_count):
        key = cursor.name(_LONGEST_KEY)
        if key in values:
            raise ValueError(f"{key}: expected each key once, got it again")
        begin = cursor.position
        with named(key):
            values[key] = _read_value(cursor)
        spans[key] = begin, cursor.position
    metadata = Metadata(values)
    if metadata.integer("split.count", 1) > 1:
        raise ValueError(
            f"split.count: expected a whole model, got a part of {values['split.count']} files; join them "
            "with llama-gguf-split --merge"
        )
    alignment = metadata.integer(_ALIGNMENT, 32)
    if alignment < 1 or alignment & (alignment - 1) or alignment > _LONGEST_HEADER:
        raise ValueError(f"{_ALIGNMENT}: expected a power of two, got {alignment}")
    tensors: dict[str, TensorEntry] = {}
    for _ in range(tensor_count):
        name = cursor.name(_LONGEST_NAME)
        if name in tensors:
            raise ValueError(f"{name}: expected each tensor once, got it again")
        with named(name):
            tensors[name] = _read_entry(cursor, alignment)
    start = -(-cursor.position // alignment) * alignment
    tensors = {name: entry._replace(begin=start + entry.begin) for name, entry in tensors.items()}
    _check_spans(tensors.items(), size)
    return metadata, tensors, spans


def _check_version(version: int) -> None:
    if version in (2, 3):
        return
    if version == 1:
        raise ValueError(
            "expected GGUF version 2 or 3, got 1, which llama.cpp no longer reads either"
        )
    if version and version & 0xFFFF == 0:  # llama.cpp's test for byte order
        raise ValueError("expected a little-endian GGUF file, got a big-endian one")
    raise ValueError(f"expected GGUF version 2 or 3, got {version}")


def _read_value(cursor: _Cursor) -> Any:
    kind = cursor.number()
    if kind == _STRING:
        return cursor.string()
    if kind != _ARRAY:
        return _numbers(cursor, kind, 1).item()
    item = cursor.number()
    if item == _ARRAY:
        raise ValueError("expected an array of numbers or strings, got one of arrays")
    if item == _STRING:
        return [cursor.string() for _ in range(cursor.count(8, "array"))]
    return _numbers(cursor, item, cursor.count(_scalar(item).itemsize, "array"))


def _scalar(kind: int) -> np.dtype[Any]:
    if kind not in _SCALARS:
        raise ValueError(f"damaged header: there is no metadata type {kind}")
    return _SCALARS[kind]


def _numbers(cursor: _Cursor, kind: int, count: int) -> NDArray[Any]:
    dtype = _scalar(kind)
    data = np.frombuffer(cursor.take(count * dtype.itemsize), np.uint8)
    if kind == _BOOLEAN and data.size and data.max() > 1:
        raise ValueError(f"expected a boolean, 0 or 1, got {data.max()}")
    return data.view(dtype)


def _read_entry(cursor: _Cursor, alignment: int) -> TensorEntry:
    """Read a tensor's entry in the table; `begin` counts from the end of the header."""
    dimensions = cursor.number()
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise ValueError(f"expected 1 to {_MOST_DIMENSIONS} dimensions, got {dimensions}")
    # GGUF lists the fastest axis first, the reverse of NumPy.
    sizes = struct.unpack(f"<{dimensions}Q", cursor.take(8 * dimensions))
    shape = tuple(reversed(sizes))
    kind = tensor_type(cursor.number())
    (offset,) = _LENGTH.unpack(cursor.take(8))
    if 0 in shape or shape[-1] % kind.values:
        raise ValueError(
            f"{kind.name} rows hold multiples of {kind.values} values, got shape {shape}"
        )
    if offset % alignment:
        raise ValueError(f"expected an offset that {alignment} divides, got {offset}")
    return TensorEntry(kind, shape, offset)


def _check_spans(tensors: Iterable[tuple[str, TensorEntry]], size: int) -> None:
    ordered = sorted(tensors, key=lambda item: item[1].begin)
    for name, entry in ordered:
        if entry.end > size:
            raise ValueError(f"truncated, {name} ends at byte {entry.end} and the file has {size}")
    for (first, before), (second, after) in pairwise(ordered):
        if before.end > after.begin:
            raise ValueError(f"{second}: expected bytes of its own, got some of {first}")
