"""Device memory from a pool of the driver's, in the order of streams: nothing waits for the device."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from cuda.bindings import driver

from numbacalib.runtime.streams import Stream, check

KEPT_BYTES = 8 << 30
"""What the pool keeps of freed memory, so that the next call need not wait for the driver."""
LARGEST_SPARE, SPARES = 4 << 20, 8
"""Bytes of a block, and blocks of a size, that are kept beside the pool: asking it takes longer."""

_spares: dict[tuple[int, int], list[Any]] = {}
"""Blocks that the legacy default stream has freed, by device and size."""


class Memory:
    """Memory of the pool, which goes back there in the order of its stream.

    Blocks of the legacy default stream that are not large wait for the next call instead.

    Attributes
    ----------
    pointer : CUdeviceptr
    device : int
    stream : Stream
        Where it was last used.
    """

    __slots__ = ("_context", "_spares", "device", "pointer", "stream")

    def __init__(self, size: int, device: int, stream: Stream) -> None:
        self.pointer: Any = None
        self.device = device
        self.stream = stream
        self._context: Any = None
        self._spares: list[Any] | None = None
        if size <= LARGEST_SPARE and not stream.handle:
            size = 1 << (size - 1).bit_length()
            self._spares = _spares.setdefault((device, size), [])
            with suppress(IndexError):  # also where another thread was faster
                self.pointer = self._spares.pop()
        self._context = check(driver.cuCtxGetCurrent())
        if self.pointer is None:
            handle = driver.CUstream(stream.handle)
            self.pointer = check(driver.cuMemAllocFromPoolAsync(size, _pool(device), handle))

    def move(self, stream: Stream) -> None:
        """Use the memory on a stream that has waited for the one of before, and free it there."""
        if stream.handle != self.stream.handle:
            self.stream, self._spares = stream, None

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if self.pointer is None or finalizing():  # the driver frees what a process leaves
            return
        if self._spares is not None and len(self._spares) < SPARES:
            self._spares.append(self.pointer)
            return
        # the collector runs in any thread, and on any device
        driver.cuCtxPushCurrent(self._context)
        driver.cuMemFreeAsync(self.pointer, driver.CUstream(self.stream.handle))
        driver.cuCtxPopCurrent()


@functools.cache
def _pool(device: int) -> Any:
    properties = driver.CUmemPoolProps()
    properties.allocType = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    properties.location.id = device
    pool = check(driver.cuMemPoolCreate(properties))
    threshold = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
    check(driver.cuMemPoolSetAttribute(pool, threshold, driver.cuuint64_t(KEPT_BYTES)))
    return pool
