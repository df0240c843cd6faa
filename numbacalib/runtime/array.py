"""Array types for signatures, and device memory in the form that kernels take."""

from __future__ import annotations

import functools
import math
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import DTypeLike, NDArray

CUDA_DLPACK = 2
"""DLPack's number for memory of a CUDA device."""


class Array(Protocol):
    """An array of NumPy, or of any library on a CUDA device.

    Attributes
    ----------
    shape : tuple of int
    dtype : dtype
        Of NumPy, or of the array's library.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...


ArrayT = TypeVar("ArrayT", NDArray[Any], Array)
"""NumPy array if the arguments are NumPy's: results are on the device of the arguments."""


class DeviceArray:
    """Device memory in the form that kernels take: a Numba device array's content at a tenth of its cost.

    A Numba device array takes longer to create than a launch, and a call creates several.

    Attributes
    ----------
    address : int
    shape, strides : tuple of int
        Strides are in bytes.
    dtype : numpy.dtype
    owner : object
        Object that keeps the memory alive.
    writable : bool
        False if the array's library forbids writing.
    """

    __slots__ = ("_form", "address", "dtype", "owner", "shape", "strides", "writable")

    def __init__(
        self,
        address: int,
        shape: tuple[int, ...],
        dtype: np.dtype,
        owner: Any,
        strides: tuple[int, ...] | None = None,
        *,
        writable: bool = True,
    ) -> None:
        self.address = address
        self.shape = shape
        self.dtype = dtype
        self.owner = owner
        self.writable = writable
        self.strides = strides or _contiguous(shape, dtype.itemsize)
        self._form: tuple[tuple, tuple] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "strides": self.strides,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "version": 3,
        }

    def is_c_contiguous(self) -> bool:
        return _is_contiguous(self.shape, self.strides, self.dtype.itemsize)

    def view(self, dtype: DTypeLike) -> DeviceArray:
        """Return the same memory as another dtype of the same width."""
        return DeviceArray(self.address, self.shape, np.dtype(dtype), self.owner, self.strides)

    def reshape(self, *shape: int | tuple[int, ...]) -> DeviceArray:
        """Return the same memory in another shape; a ValueError if that needs a copy.

        Lengths come one by one or as a tuple, as in NumPy.
        """
        lengths: Any = shape[0] if isinstance(shape[0], tuple) else shape
        if self.is_c_contiguous() and math.prod(lengths) == self.size:
            return DeviceArray(self.address, lengths, self.dtype, self.owner)
        layout = as_strided(np.empty(1, self.dtype), self.shape, self.strides)
        layout = layout.reshape(*shape, copy=False)  # type: ignore[arg-type]
        return DeviceArray(self.address, layout.shape, self.dtype, self.owner, layout.strides)

    def __getitem__(self, key: Any) -> DeviceArray:
        """Return a row, or the block that slices of step 1 select; an IndexError beyond the rows."""
        key = key if isinstance(key, tuple) else (key,)
        address, shape, strides = self.address, [], []
        for axis, (length, stride) in enumerate(zip(self.shape, self.strides, strict=True)):
            part = key[axis] if axis < len(key) else slice(None)
            if isinstance(part, slice):
                start, stop, _ = part.indices(length)
                shape.append(stop - start)
                strides.append(stride)
            elif -length <= part < length:
                start = part % length
            else:
                raise IndexError(f"expected an index of {length} rows, got {part}")
            address += start * stride
        return DeviceArray(address, tuple(shape), self.dtype, self.owner, tuple(strides))

    def parameters(self) -> tuple[tuple, tuple]:
        """Return the key of a kernel's compiled form, and the words that the kernel takes."""
        if self._form is None:
            size = self.dtype.itemsize
            kind = _kind(self.dtype.char, size, self.shape, self.strides)
            # meminfo, parent, number of elements, bytes of each, address, shape, strides
            words = 0, 0, self.size, size, self.address, *self.shape, *self.strides
            self._form = kind, words
        return self._form


def _contiguous(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Byte strides of a C-contiguous array."""
    if len(shape) == 2:
        return shape[1] * size, size
    strides = []
    for length in reversed(shape):
        strides.append(size)
        size *= length
    return tuple(reversed(strides))


@functools.lru_cache(maxsize=4096)
def _kind(char: str, size: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple:
    """Return the properties of an array that determine its Numba type."""
    by_rows = _is_contiguous(shape, strides, size)
    by_columns = _is_contiguous(shape[::-1], strides[::-1], size)
    return char, len(shape), by_rows, by_columns, 0 in strides


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...], size: int) -> bool:
    """Return whether an array is C-contiguous; the stride of an axis of one element does not matter.

    Numba's rule for the type of an array is the same.
    """
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length > 1 and stride != size:
            return False
        size *= length
    return True
