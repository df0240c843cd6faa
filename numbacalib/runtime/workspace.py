"""Scratch memory on the device, taken and given back in the order of a stream."""

from __future__ import annotations

import functools
import math
from types import TracebackType
from typing import Any

import numpy as np
from cuda.bindings import driver
from numba import cuda

KEPT_BYTES = 512 << 20
"""What the pool keeps between calls, so that they need not wait for the driver."""


def check(result: tuple) -> Any:
    """Return the value of a driver call, or raise what it failed with."""
    error, *values = result
    if error != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"CUDA driver: {error.name}")
    return values[0] if values else None


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


class Workspace:
    """Arrays that live until the stream has passed the end of a ``with`` block.

    Allocation and release are entries of the stream, so neither waits for the device.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = driver.CUstream(int(stream.handle) if stream else 0)
        self._addresses: list[Any] = []

    def __enter__(self) -> Workspace:
        return self

    def array(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return an uninitialised C-contiguous device array."""
        dtype = np.dtype(dtype)
        size = max(1, math.prod(shape) * dtype.itemsize)
        pool = _pool(cuda.current_context().device.id)
        address = check(driver.cuMemAllocFromPoolAsync(size, pool, self._stream))
        self._addresses.append(address)
        return cuda.from_cuda_array_interface(
            {"shape": shape, "typestr": dtype.str, "data": (int(address), False), "version": 3}
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for address in self._addresses:
            check(driver.cuMemFreeAsync(address, self._stream))
