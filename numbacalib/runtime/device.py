"""CUDA arrays of any library, streams and memory.

The one module through which `numba.cuda` comes: kernel modules take `cuda` from here, and it is
imported only once a CUDA array was seen.
"""

from __future__ import annotations

import functools
import math
from contextvars import ContextVar
from typing import Any

import numpy as np
from numba import cuda
from numba.core import config
from numpy.lib.stride_tricks import as_strided
from numpy.typing import DTypeLike, NDArray

from numbacalib.runtime import memory
from numbacalib.runtime.memory import check

SIMULATED = bool(config.ENABLE_CUDASIM)
"""Whether kernels run in Numba's CUDA simulator, as Python."""

if not SIMULATED:
    from cuda.bindings import driver

_STREAM: ContextVar[Any] = ContextVar("stream", default=0)


class Array:
    """Device memory as kernels take it: what a Numba device array holds, at a tenth of its cost.

    A Numba device array takes longer to make than a launch, and a call makes several.

    Attributes
    ----------
    address : int
    shape, strides : tuple of int
        Strides are in bytes.
    dtype : numpy.dtype
        bfloat16 is ``V2``, its name in the CUDA array interface.
    owner : object
        What keeps the memory.
    """

    __slots__ = ("_form", "address", "dtype", "owner", "shape", "strides")

    def __init__(
        self,
        address: int,
        shape: tuple[int, ...],
        dtype: np.dtype,
        owner: Any,
        strides: tuple[int, ...] | None = None,
    ) -> None:
        self.address = address
        self.shape = shape
        self.dtype = dtype
        self.owner = owner
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

    def view(self, dtype: DTypeLike) -> Array:
        """Return the same memory as another dtype of the same width."""
        return Array(self.address, self.shape, np.dtype(dtype), self.owner, self.strides)

    def reshape(self, *shape: int) -> Array:
        """Return the same memory in another shape; a ValueError where that takes a copy."""
        layout = as_strided(np.empty(1, self.dtype), self.shape, self.strides)
        layout = layout.reshape(shape, copy=False)
        return Array(self.address, layout.shape, self.dtype, self.owner, layout.strides)

    def __getitem__(self, key: Any) -> Array:
        """Return a row, or the block that slices of step 1 select."""
        key = key if isinstance(key, tuple) else (key,)
        address, shape, strides = self.address, [], []
        for axis, (length, stride) in enumerate(zip(self.shape, self.strides, strict=True)):
            part = key[axis] if axis < len(key) else slice(None)
            if isinstance(part, slice):
                start, stop, _ = part.indices(length)
                shape.append(stop - start)
                strides.append(stride)
            else:
                start = part
            address += start * stride
        return Array(address, tuple(shape), self.dtype, self.owner, tuple(strides))

    def parameters(self) -> tuple[tuple, tuple]:
        """What a kernel's type depends on, and the words that a kernel takes."""
        if self._form is None:
            size = self.dtype.itemsize
            kind = _kind(self.dtype.char, size, self.shape, self.strides)
            # meminfo, parent, elements, bytes of one, address, shape, strides
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
    """What the type that Numba gives to an array depends on."""
    by_rows = _is_contiguous(shape, strides, size)
    by_columns = _is_contiguous(shape[::-1], strides[::-1], size)
    return char, len(shape), by_rows, by_columns, 0 in strides


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...], size: int) -> bool:
    """Whether an array is C-contiguous; the stride of an axis of one element does not matter.

    Numba sees it so, too, when it chooses the type of an array.
    """
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length > 1 and stride != size:
            return False
        size *= length
    return True


def device_array(array: Any, interface: Any) -> Any:
    """Return a CUDA array as an `Array` over the same memory; in the simulator, as it is.

    `interface` is its CUDA array interface, which some libraries take long to make.
    """
    if SIMULATED or isinstance(array, Array):
        return array
    if interface.get("mask") is not None:
        raise TypeError("expected a CUDA array without a mask")
    producer = interface.get("stream")
    if producer is not None:
        _wait_for(producer)
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    if hasattr(array, "__cuda_ndarray__"):
        dtype = array.dtype  # the interface has no name for bfloat16
    return Array(interface["data"][0], shape, dtype, array, interface.get("strides"))


def result(array: Any) -> Any:
    """Return an array as callers get it: the Numba device array that came, or a new one."""
    if SIMULATED:
        return array
    owner = array.owner
    if hasattr(owner, "__cuda_ndarray__") and owner.dtype == array.dtype:
        where = owner.__cuda_array_interface__["data"][0], owner.shape, owner.strides
        if where == (array.address, array.shape, array.strides):
            return owner
    return numba_array(array)


def numba_array(array: Array) -> Any:
    """Return a Numba device array over the same memory."""
    from numba.cuda.cudadrv.devicearray import DeviceNDArray
    from numba.cuda.cudadrv.driver import MemoryPointer

    pointer = driver.CUdeviceptr(array.address)
    size = array.size * array.dtype.itemsize
    data = MemoryPointer(cuda.current_context(), pointer, size, owner=array.owner)
    return DeviceNDArray(array.shape, array.strides, array.dtype, gpu_data=data)


def _wait_for(producer: int) -> None:
    """Order the current stream after what another stream has been given so far, without waiting."""
    stream = _STREAM.get() or cuda.default_stream()
    # 1 is the legacy default stream, which is Numba's own unless CUDA_PER_THREAD_DEFAULT_STREAM is set
    if producer not in (int(stream.handle) or 1, int(stream.handle)):
        event = cuda.event(timing=False)
        event.record(cuda.external_stream(producer))
        event.wait(stream)


def enter_stream(stream: Any) -> Any:
    """Launch on `stream` until `leave_stream` gets what this returns.

    `stream` is a handle, a Numba stream or an object with ``__cuda_stream__``.
    """
    if hasattr(stream, "__cuda_stream__"):
        stream = int(stream.__cuda_stream__()[1])
    if SIMULATED:
        stream = 0
    if not isinstance(stream, int):
        raise TypeError(f"stream: expected a CUDA stream, got {type(stream).__name__}")
    return _STREAM.set(cuda.external_stream(stream) if stream else 0)


def leave_stream(token: Any) -> None:
    """Launch on the stream of before."""
    _STREAM.reset(token)


def current_device() -> int:
    """Return the number of the current device."""
    error, number = driver.cuCtxGetDevice()
    return cuda.current_context().device.id if error else int(number)


def current_stream() -> Any:
    """Return the Numba stream on which to launch, 0 for the default one."""
    return _STREAM.get()


def stream_handle() -> int:
    """Return the handle of the current stream, 0 for the default one."""
    stream = _STREAM.get()
    return int(stream.handle) if stream else 0


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    """Return an uninitialised C-contiguous device array.

    Its memory is for work of the current stream, and free once nothing refers to it any more: neither
    waits for the device.

    Raises
    ------
    MemoryError
        If so much memory is not free. It says how much is.
    """
    if SIMULATED:
        return cuda.device_array(shape, dtype)
    dtype = np.dtype(dtype)
    size = max(1, math.prod(shape) * dtype.itemsize)
    current_device()  # a thread's first call has no context yet
    owner = memory.allocate(size, stream_handle())
    return Array(owner.ptr, shape, dtype, owner)


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    """Return a C-contiguous device array of zeros."""
    if SIMULATED:
        return cuda.to_device(np.zeros(shape, dtype))
    array = empty(shape, dtype)
    size = array.size * array.dtype.itemsize
    check(driver.cuMemsetD8Async(array.address, 0, size, driver.CUstream(stream_handle())))
    return array


def from_host(array: NDArray) -> Any:
    """Copy a C-contiguous NumPy array to the device."""
    if SIMULATED:
        return cuda.to_device(array)
    copy = empty(array.shape, array.dtype)
    write(copy, array)
    return copy


def write(target: Any, array: NDArray) -> None:
    """Copy a C-contiguous NumPy array into a contiguous device array."""
    if SIMULATED:
        target.copy_to_device(array)
        return
    # the driver has read pageable memory when this returns
    source = array.ctypes.data, array.nbytes, driver.CUstream(stream_handle())
    check(driver.cuMemcpyHtoDAsync(target.address, *source))


def copy(source: Any, target: Any) -> None:
    """Copy a contiguous device array into another."""
    if SIMULATED:
        target.copy_to_device(source)
        return
    size = source.size * source.dtype.itemsize
    stream = driver.CUstream(stream_handle())
    check(driver.cuMemcpyDtoDAsync(target.address, source.address, size, stream))


def read(array: Any) -> NDArray:
    """Copy a contiguous device array to the host once the current stream has made it."""
    if SIMULATED:
        return array.copy_to_host()
    host = np.empty(array.shape, array.dtype)
    stream = driver.CUstream(stream_handle())
    check(driver.cuMemcpyDtoHAsync(host.ctypes.data, array.address, host.nbytes, stream))
    check(driver.cuStreamSynchronize(stream))
    return host


def address(array: Any) -> int:
    """Address of a device array's first element."""
    return array.ctypes.data if SIMULATED else array.address


def may_share_memory(left: Any, right: Any) -> bool:
    """Whether the address ranges of two device arrays overlap."""
    (low, high), (first, last) = _extent(left), _extent(right)
    return low < last and first < high


def _extent(array: Any) -> tuple[int, int]:
    """Return the first address of a device array and the one past its last."""
    reach = [(n - 1) * step for n, step in zip(array.shape, array.strides, strict=True)]
    low = address(array) + sum(step for step in reach if step < 0)
    high = address(array) + sum(step for step in reach if step > 0) + array.dtype.itemsize
    return low, high
