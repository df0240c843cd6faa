"""Device memory: from CuPy's pool if CuPy is installed, so that all its users share one pool.

Freed memory can be reused at once on the stream that it was allocated on, since work there is in order:
nothing waits for the device. A limit of CuPy's pool also holds for our arrays, and `free_all_blocks` frees
what they no longer use.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

from numbacalib.runtime.extras import extra
from numbacalib.runtime.streams import Stream, check

with extra("cuda"):
    from cuda.bindings import driver

KEPT_BYTES = 8 << 30
"""Freed memory that the driver's pool keeps, so that the next call need not wait for the driver."""


@functools.cache
def has_cupy() -> bool:
    """Return whether CuPy is installed."""
    return find_spec("cupy") is not None


class Memory:
    """Bytes of the current device, for work of a stream, freed once nothing refers to this.

    Attributes
    ----------
    pointer : int
    device : int
    stream : Stream
        Where they were last used.

    Raises
    ------
    MemoryError
        If so much is not free; it names the free bytes.
    """

    __slots__ = ("_context", "_home", "_owner", "device", "pointer", "stream")

    def __init__(self, size: int, device: int, stream: Stream) -> None:
        self._owner: Any = None
        self.device = device
        self.stream = self._home = stream
        self._context = _context(device)
        self._owner = _allocate(size, stream.handle)
        self.pointer = int(self._owner.ptr)

    def move(self, stream: Stream) -> None:
        """Use the memory on a stream that has waited for the previous one."""
        self.stream = stream

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if self._owner is None or self.stream.handle == self._home.handle or finalizing():
            return
        # the pool reuses it on the stream that it came from, which must wait for its last use;
        # the collector may run in any thread, and on any device
        driver.cuCtxPushCurrent(self._context)
        _, event = driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)
        driver.cuEventRecord(event, driver.CUstream(self.stream.handle))
        driver.cuStreamWaitEvent(driver.CUstream(self._home.handle), event, 0)
        driver.cuEventDestroy(event)
        self._owner = None
        driver.cuCtxPopCurrent()


@functools.cache
def _context(number: int) -> Any:
    """Return the context of the current device, which is device `number`."""
    del number
    return check(driver.cuCtxGetCurrent())


def _allocate(size: int, stream: int) -> Any:
    """Return the owner of `size` bytes of the current device, whose address is its `ptr`.

    They are for work of `stream`, a handle, and freed once nothing refers to the owner.

    Raises
    ------
    MemoryError
        If so much is not free; it names the free bytes.
    """
    try:
        if not has_cupy():
            return _Block(size, stream)
        cuda = _cupy_cuda()
        if cuda.get_current_stream().ptr == stream:
            return cuda.alloc(size)
        with cupy_stream(stream, _device()):
            return cuda.alloc(size)
    except MemoryError as error:
        needed = f"GPU {_device()}: {size:,} bytes are needed"
        raise MemoryError(f"{needed}, {_available(size)}") from error


@functools.cache
def _cupy_cuda() -> Any:
    import cupy

    return cupy.cuda


def _device() -> int:
    return int(check(driver.cuCtxGetDevice()))


@functools.lru_cache(maxsize=64)
def cupy_stream(handle: int, device: int) -> Any:
    """Return CuPy's object for a stream: inside its ``with`` statement, CuPy and its libraries use it."""
    return _cupy_cuda().Stream.from_external(_Stream(handle))


class _Stream:
    """Stream with the protocol ``__cuda_stream__``, for other libraries."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle


class Room(NamedTuple):
    """Memory of the current device, in bytes, within a limit of CuPy's pool."""

    free: int
    total: int
    limited: bool
    """True if CuPy's pool has a limit."""


def room() -> Room:
    """Return the memory of the current device."""
    _, free, total = driver.cuMemGetInfo()
    if not has_cupy():
        return Room(free, total, limited=False)
    from cupy import get_default_memory_pool

    pool = get_default_memory_pool()
    free += pool.free_bytes()
    limit = pool.get_limit()
    if not limit:
        return Room(free, total, limited=False)
    return Room(min(free, limit - pool.used_bytes()), min(limit, total), limited=True)


def taken_bytes() -> int:
    """Return the bytes of the current device that CuPy's pool holds from the driver."""
    from cupy import get_default_memory_pool

    return int(get_default_memory_pool().total_bytes())


def give_back() -> None:
    """Return freed memory of CuPy's pool to the driver."""
    if has_cupy():
        from cupy import get_default_memory_pool

        get_default_memory_pool().free_all_blocks()


def _available(size: int) -> str:
    """Describe the free memory after `size` bytes were refused."""
    found = room()
    bound = "CuPy's pool is limited to" if found.limited else "it has"
    pieces = " in pieces" if found.free >= size else ""
    return f"{found.free:,} are free{pieces} of what {bound} ({found.total:,})"


class _Block:
    """Memory of a pool of the driver, used if CuPy is not installed."""

    __slots__ = ("_context", "_stream", "ptr")

    def __init__(self, size: int, stream: int) -> None:
        self.ptr = 0
        self._context = check(driver.cuCtxGetCurrent())
        self._stream = driver.CUstream(stream)
        error, pointer = driver.cuMemAllocFromPoolAsync(size, _pool(_device()), self._stream)
        if error:
            raise MemoryError(error.name)
        self.ptr = int(pointer)

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if self.ptr and not finalizing():  # the driver frees the memory of a process that ends
            driver.cuCtxPushCurrent(self._context)  # the collector may run on any device
            driver.cuMemFreeAsync(self.ptr, self._stream)
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
