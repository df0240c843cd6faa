"""Kernel launches with little work on the host.

Launches pack the arguments directly in the layout that Numba's kernels expect, and call the driver: about
5 us instead of 30 to 60. Numba only compiles, and only kernels that no earlier process compiled. The layout
is private to numba-cuda: with an untested version, every launch goes through Numba.
"""

from __future__ import annotations

import struct
import threading
import warnings
from typing import Any

import numpy as np
from cuda.bindings import driver
from numba.cuda.core.errors import NumbaPerformanceWarning
from numba_cuda import __version__ as numba_cuda_version

from numbacalib.runtime.array import DeviceArray
from numbacalib.runtime.driver_device import (
    current_device,
    current_stream,
    numba_array,
    stream_handle,
)
from numbacalib.runtime.streams import check

TESTED = ("0.30",)
"""Series of numba-cuda whose layout of parameters is that of `_FORMATS` and `DeviceArray.parameters`."""

PACKED = numba_cuda_version.rsplit(".", 1)[0] in TESTED
"""True if launches pack the arguments directly."""

if PACKED:
    from numbacalib.runtime import cubins

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
    """Each thread's `_Prepared` by kernel, device and kinds of arguments: each holds a launch's values."""

    def __init__(self) -> None:
        self.prepared: dict[tuple, _Prepared] = {}


_thread = _Thread()
_functions: dict[tuple, Any] = {}
"""Kernels that this process has loaded, by the same keys."""


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
    if not PACKED:
        _launch_by_numba(kernel, grid, threads, arguments, shared_bytes)
        return
    key: list[Any] = [kernel, current_device()]
    values: list[Any] = []
    for argument in arguments:
        if type(argument) is DeviceArray:
            kind, words = argument.parameters()
            key.append(kind)
            values += words
        elif isinstance(argument, tuple):
            key.append(tuple(map(type, argument)))
            values += argument
        else:
            key.append(type(argument))
            values.append(argument)
    prepared = _thread.prepared.get(tuple(key))
    if prepared is None:
        function = _function(tuple(key), arguments, shared_bytes)
        prepared = _Prepared(function, [_FORMATS[type(value)] for value in values])
        _thread.prepared[tuple(key)] = prepared
    prepared.layout.pack_into(prepared.parameters, 0, *values)
    sizes = *_three(grid), *_three(threads), shared_bytes
    check(driver.cuLaunchKernel(prepared.function, *sizes, stream_handle(), prepared.pointers, 0))


def _function(key: tuple, arguments: tuple, shared_bytes: int) -> Any:
    """Return the driver's handle of a kernel on a device for arguments of these kinds."""
    if key not in _functions:
        kernel, device, *kinds = key
        handle = cubins.function(kernel, tuple(kinds), lambda: _types(kernel, arguments))
        _allow_shared(handle, shared_bytes, device)
        _functions[key] = driver.CUfunction(int(handle))
    return _functions[key]


def _allow_shared(function: Any, shared_bytes: int, device: int) -> None:
    """Let blocks have this much dynamic shared memory; the default limit is 48 KiB."""
    if shared_bytes:
        limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        check(driver.cuKernelSetAttribute(limit, shared_bytes, function, device))


def _types(kernel: Any, arguments: tuple) -> tuple:
    """Return the types that Numba gives to a kernel's arguments."""
    return tuple(map(kernel.typeof_pyval, _for_numba(arguments)))


def _launch_by_numba(
    kernel: Any, grid: Any, threads: Any, arguments: tuple, shared_bytes: int
) -> None:
    """Launch through Numba, which compiles the kernel if needed."""
    types = _types(kernel, arguments)
    kernel.compile(types)
    handle = kernel.overloads[types].library.get_cufunc().handle
    _allow_shared(handle, shared_bytes, current_device())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumbaPerformanceWarning)  # small grids are deliberate
        kernel[grid, threads, current_stream(), shared_bytes](*_for_numba(arguments))


def _for_numba(arguments: tuple) -> tuple:
    return tuple(numba_array(a) if isinstance(a, DeviceArray) else a for a in arguments)


def _three(sizes: Any) -> tuple[int, ...]:
    return (*sizes, 1, 1)[:3] if isinstance(sizes, tuple) else (sizes, 1, 1)
