"""Safetensors files: their types, and a reader that checks the whole header before it reads data.

A file is 8 bytes with the header's length, the header (JSON) and the data; offsets count from the
data's start, and tensors follow each other without gaps.
https://huggingface.co/docs/safetensors/index#format

The library's reader is not used: it maps the file (truncating a mapped file kills the process), has no
NumPy dtype for types narrower than a byte, and takes the last of two equal names.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.fields import Fields
from numbacalib.models.input_files import InputFiles, parse_object
from numbacalib.runtime.extras import extra

with extra("models"):
    import ml_dtypes

__all__ = ["STORED_TYPES", "StoredTensor", "TensorEntry", "read_header"]

HEADER_BYTES = 100_000_000
"""Longest header, as in the format's reference implementation."""

_NAME_LENGTH = 1024
_MOST_AXES = 64
_MOST_VALUES = 1 << 48


class StoredType(NamedTuple):
    """Width of an element, and its NumPy dtype; None if elements share bytes."""

    bits: int
    dtype: np.dtype[Any] | None


def _whole(dtype: Any) -> StoredType:
    return StoredType(8 * np.dtype(dtype).itemsize, np.dtype(dtype))


STORED_TYPES = {
    "F64": _whole(np.float64),
    "F32": _whole(np.float32),
    "F16": _whole(np.float16),
    "BF16": _whole(ml_dtypes.bfloat16),
    "F8_E4M3": _whole(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": _whole(ml_dtypes.float8_e5m2),
    "F8_E8M0": _whole(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": _whole(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": _whole(ml_dtypes.float8_e5m2fnuz),
    "F6_E2M3": StoredType(6, None),
    "F6_E3M2": StoredType(6, None),
    "F4": StoredType(4, None),
    "C64": _whole(np.complex64),
    "I64": _whole(np.int64),
    "I32": _whole(np.int32),
    "I16": _whole(np.int16),
    "I8": _whole(np.int8),
    "U64": _whole(np.uint64),
    "U32": _whole(np.uint32),
    "U16": _whole(np.uint16),
    "U8": _whole(np.uint8),
    "BOOL": _whole(np.bool_),
}
"""Every type of the format (safetensors 0.8), by its name in files."""

_NAMES = {kind.dtype: name for name, kind in STORED_TYPES.items() if kind.dtype is not None}


class StoredTensor(NamedTuple):
    """A tensor as stored in a safetensors file, of any of `STORED_TYPES`."""

    dtype_name: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]
    """Its bytes, uint8 ``[n]``."""

    @classmethod
    def of(cls, tensor: NDArray[Any]) -> StoredTensor:
        """View an array as a stored tensor; one that is not contiguous is copied.

        Raises
        ------
        TypeError
            If the format has no type for its dtype.
        """
        name = _NAMES.get(tensor.dtype)
        if name is None:
            raise TypeError(f"expected a dtype of {', '.join(STORED_TYPES)}, got {tensor.dtype}")
        return cls(name, tensor.shape, tensor.ravel().view(np.uint8))

    def array(self) -> NDArray[Any] | None:
        """View it as an array; None if NumPy has no such dtype."""
        dtype = STORED_TYPES[self.dtype_name].dtype
        return None if dtype is None else self.data.view(dtype).reshape(self.shape)


class TensorEntry(NamedTuple):
    """Location of a tensor in its file."""

    file: Path
    dtype_name: str
    shape: tuple[int, ...]
    begin: int
    """First byte in the file."""
    length: int
    """Length in bytes."""


def read_header(files: InputFiles, file: Path) -> dict[str, TensorEntry]:
    """Read the locations of a file's tensors, by name.

    Raises
    ------
    ValueError
        One line that names the file: if it is not a regular file, is truncated, or has a damaged header,
        including spans that overlap or leave gaps, and duplicate names.
    """
    size = files.watch(file)
    if size < 8:
        raise ValueError(f"{file}: truncated, {size} bytes are no safetensors file")
    length = int.from_bytes(files.read(file, 0, 8).tobytes(), "little")
    start = 8 + length
    if start > size:
        raise ValueError(
            f"{file}: truncated or not safetensors, the header ends at byte {start} of {size}"
        )
    if length > HEADER_BYTES:
        raise ValueError(
            f"{file}: damaged header, expected at most {HEADER_BYTES} bytes, got {length}"
        )
    header = parse_object(files.read(file, 8, length).tobytes(), f"{file}: damaged header")
    header.pop("__metadata__", None)
    try:
        fields = Fields(header)
        entries = {name: _entry(file, start, fields, name) for name in header}
    except ValueError as error:
        raise ValueError(f"{file}: damaged header, {error}") from None
    end = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].length)):
        if entry.begin != end:
            raise ValueError(
                f"{file}: damaged header, {name[:80]!r} was expected at byte {end - start}, "
                f"where the one before ends, and is at {entry.begin - start}"
            )
        end += entry.length
    if end != size:
        how = "truncated, its" if end > size else "damaged header, the"
        raise ValueError(f"{file}: {how} tensors end at byte {end}, the file has {size}")
    return entries


def _entry(file: Path, start: int, header: Fields, name: str) -> TensorEntry:
    if len(name) > _NAME_LENGTH or not name.isprintable():
        raise ValueError(
            f"expected printable names of at most {_NAME_LENGTH} characters, got {name[:40]!r}"
        )
    fields = header.object(name)
    dtype_name = fields.text("dtype")
    if dtype_name not in STORED_TYPES:
        raise fields.error("dtype", f"one of {', '.join(STORED_TYPES)}")
    shape = tuple(fields.integers("shape", 0))
    begin, end = fields.integers("data_offsets", 0, length=2)
    fields.refuse_unread()
    if len(shape) > _MOST_AXES or math.prod(max(axis, 1) for axis in shape) > _MOST_VALUES:
        raise fields.error("shape", f"at most {_MOST_AXES} axes and 2**48 values")
    bits = math.prod(shape) * STORED_TYPES[dtype_name].bits
    if bits % 8 or end - begin != bits // 8:
        raise ValueError(f"{name}: {dtype_name} {list(shape)} does not take bytes {begin} to {end}")
    return TensorEntry(file, dtype_name, shape, start + begin, end - begin)
