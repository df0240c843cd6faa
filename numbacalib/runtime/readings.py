"""Asynchronous copies of numbers from a device to the host, which waits only when it needs them.

Pinned memory, which such copies need, is slow to allocate: it is kept for the next copy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda
from numpy.typing import NDArray

from numbacalib.runtime.driver_device import current_device
from numbacalib.runtime.extras import extra
from numbacalib.runtime.streams import check, current

with extra("cuda"):
    from cuda.bindings import driver

TOGETHER = 2048
"""Bytes of small buffers that are allocated together: the driver may wait for the device before it
allocates pinned memory."""
UNREAD = 1024
"""Most unread buffers of a size: beyond this the host waits for the device, to reuse them."""


class _Buffer:
    """Pinned memory for one copy, and the event that marks its end."""

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self.memory = memory
        self.address = memory.ctypes.data
        self.copied = check(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))


class _Buffers:
    """Free buffers of one size, kept since allocating one takes longer than a check.

    The copy to an unread buffer may still be running. Its event cannot be queried safely: the stream that
    it was recorded on may be destroyed, and then the driver reads freed memory.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.read: list[_Buffer] = []
        self.unread: list[_Buffer] = []

    def take(self) -> _Buffer:
        """Return a buffer to which no copy is running."""
        try:
            return self.read.pop()
        except IndexError:
            pass
        if len(self.unread) < UNREAD:
            count = max(1, TOGETHER // self.size)
            found = np.split(cuda.pinned_array(count * self.size, np.uint8), count)
        else:
            unread, self.unread = self.unread, []
            check(driver.cuCtxSynchronize())
            for buffer in unread:
                check(driver.cuEventDestroy(buffer.copied))
            found = [buffer.memory for buffer in unread]
        buffer, *others = map(_Buffer, found)
        self.read += others
        return buffer


@functools.cache
def _buffers(device: int, size: int) -> _Buffers:
    """Buffers of this many bytes on a device."""
    del device
    return _Buffers(size)


class _Copy:
    """Running copy of an array to the host."""

    def __init__(self, array: Any, buffers: _Buffers, buffer: _Buffer) -> None:
        self._buffers, self._buffer = buffers, buffer
        self._shape, self._dtype = array.shape, array.dtype
        self._found: NDArray[Any] | None = None
        size = self._size = array.size * array.dtype.itemsize
        self._stream = current()  # its owner keeps the event valid until the end
        stream = driver.CUstream(self._stream.handle)
        check(driver.cuMemcpyDtoHAsync(buffer.address, array.address, size, stream))
        check(driver.cuEventRecord(buffer.copied, stream))

    def values(self) -> NDArray[Any]:
        if self._found is None:
            check(driver.cuEventSynchronize(self._buffer.copied))
            found = self._buffer.memory[: self._size].view(self._dtype)
            self._found = found.reshape(self._shape).copy()
        return self._found

    def __del__(self) -> None:
        buffers = self._buffers
        (buffers.unread if self._found is None else buffers.read).append(self._buffer)


def start_reading(array: Any) -> Callable[[], NDArray[Any]]:
    """Start to copy a contiguous array to the host; return a function that waits for this copy only."""
    bytes_of_buffer = 1 << (array.size * array.dtype.itemsize - 1).bit_length()  # a power of two
    buffers = _buffers(current_device(), bytes_of_buffer)
    return _Copy(array, buffers, buffers.take()).values
