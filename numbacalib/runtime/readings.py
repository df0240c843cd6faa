"""Numbers on their way from a device to the host, which does not wait until it needs them.

Memory to which a device copies while the host goes on takes long to make: it is kept for the next copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda
from numpy.typing import NDArray

from numbacalib.runtime.driver_device import current_device, stream_handle
from numbacalib.runtime.extras import extra
from numbacalib.runtime.streams import check

with extra("cuda"):
    from cuda.bindings import driver

TOGETHER = 2048
"""Bytes of small rooms that are made together: the driver may wait for the device before it gives pinned
memory."""


class _Room:
    """Pinned memory for one copy, and the event that tells its end."""

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self.memory = memory
        self.address = memory.ctypes.data
        self.copied = check(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))


_spare: dict[tuple[int, int], list[_Room]] = {}
"""Rooms that no copy has, by the device and their bytes, a power of two."""


class _Copy:
    """An array on its way to the host."""

    def __init__(self, array: Any) -> None:
        self._shape, self._dtype = array.shape, array.dtype
        self._found: NDArray[Any] | None = None
        size = self._size = array.size * array.dtype.itemsize
        room = 1 << (size - 1).bit_length()
        self._spare = _spare.setdefault((current_device(), room), [])
        try:
            self._room = self._spare.pop()
        except IndexError:
            count = max(1, TOGETHER // room)
            memory = cuda.pinned_array(count * room, np.uint8)
            self._room, *others = (_Room(each) for each in np.split(memory, count))
            self._spare += others
        stream = driver.CUstream(stream_handle())
        # nobody may have waited for the copy before
        check(driver.cuStreamWaitEvent(stream, self._room.copied, 0))
        check(driver.cuMemcpyDtoHAsync(self._room.address, array.address, size, stream))
        check(driver.cuEventRecord(self._room.copied, stream))

    def values(self) -> NDArray[Any]:
        if self._found is None:
            check(driver.cuEventSynchronize(self._room.copied))
            found = self._room.memory[: self._size].view(self._dtype)
            self._found = found.reshape(self._shape).copy()
        return self._found

    def __del__(self) -> None:
        self._spare.append(self._room)


def start_reading(array: Any) -> Callable[[], NDArray[Any]]:
    """Start to copy a contiguous array to the host; return what waits for the copy alone."""
    return _Copy(array).values
