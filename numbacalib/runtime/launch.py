"""Launching kernels with little work on the host.

Numba compiles a kernel and prepares its first launch for each combination of argument types. Later
launches pack the arguments themselves, in the layout that Numba's kernels expect, and go straight to
the driver: about 5 us instead of 30 to 60.
"""

from __future__ import annotations

import struct
import threading
import warnings
from typing import Any

import numpy as np

from numbacalib.runtime.device import (
    SIMULATED,
    Array,
    check,
    current_device,
    current_stream,
    numba_array,
    stream_handle,
)

if not SIMULATED:
    from cuda.bindings import driver
    from numba.cuda.core.errors import NumbaPerformanceWarning

_FORMATS = {
    bool: "?7x",
    int: "q",
    float: "d",
    np.int32: "i4x",
    np.int64: "q",
    np.uint32: "I4x",
    np.int16: "h6x",
    np.float32: "f4x",
    np.float64: "d",
}
"""Formats of parameters, each padded to 8 bytes."""


class _Prepared:
    """A compiled kernel with memory for its parameters."""

    __slots__ = ("_memory", "function", "layout", "parameters", "pointers")

    def __init__(self, function: Any, formats: list[str]) -> None:
        self.function = function
        self.layout = struct.Struct("".join(formats))
        self.parameters = bytearray(self.layout.size)
        start = np.frombuffer(self.parameters, np.uint8).ctypes.data
        self._memory = start + 8 * np.arange(len(formats))
        self.pointers = self._memory.ctypes.data


class _Thread(threading.local):
    """Each thread's `_Prepared` by kernel and types: a launch writes into its memory."""

    def __init__(self) -> None:
        self.prepared: dict[tuple, _Prepared] = {}


_thread = _Thread()


def launch(kernel: Any, grid: Any, threads: Any, *arguments: Any, shared_bytes: int = 0) -> None:
    """Launch a kernel on the current stream.

    Parameters
    ----------
    kernel : `@cuda.jit` function
    grid, threads : int or tuple of int
        Blocks of the grid and threads of a block.
    *arguments
        Device arrays, scalars and tuples of scalars.
    shared_bytes : int
        Dynamic shared memory of a block; the same for every launch of a kernel.
    """
    if SIMULATED:
        kernel[grid, threads](*arguments)
        return
    key: list[Any] = [kernel, current_device()]
    values: list[Any] = []
    for argument in arguments:
        if type(argument) is Array:
            kind, words = argument.parameters()
            key.append(kind)
            values += words
        elif isinstance(argument, tuple):
            key += map(type, argument)
            values += argument
        else:
            key.append(type(argument))
            values.append(argument)
    cache = _thread.prepared
    prepared = cache.get(tuple(key))
    if prepared is None:
        function = _first_launch(kernel, grid, threads, arguments, shared_bytes)
        cache[tuple(key)] = _Prepared(function, [_FORMATS[type(value)] for value in values])
        return
    prepared.layout.pack_into(prepared.parameters, 0, *values)
    sizes = *_three(grid), *_three(threads), shared_bytes
    check(driver.cuLaunchKernel(prepared.function, *sizes, stream_handle(), prepared.pointers, 0))


def _first_launch(kernel: Any, grid: Any, threads: Any, arguments: tuple, shared_bytes: int) -> Any:
    """Launch through Numba, which compiles, and return the driver's handle of the kernel."""
    arguments = tuple(numba_array(a) if isinstance(a, Array) else a for a in arguments)
    types = tuple(kernel.typeof_pyval(argument) for argument in arguments)
    kernel.compile(types)
    function = kernel.overloads[types].library.get_cufunc().handle
    if shared_bytes:
        # a block gets more than 48 KiB only where the function allows it
        limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        check(driver.cuKernelSetAttribute(limit, shared_bytes, function, current_device()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumbaPerformanceWarning)  # small grids are deliberate
        kernel[grid, threads, current_stream(), shared_bytes](*arguments)
    return driver.CUfunction(int(function))


def _three(sizes: Any) -> tuple[int, ...]:
    return (*sizes, 1, 1)[:3] if isinstance(sizes, tuple) else (sizes, 1, 1)
