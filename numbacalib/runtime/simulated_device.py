"""Device of Numba's CUDA simulator, whose memory is the host's and whose kernels run as Python.

A twin of the modules that `device` takes its functions from, with the same arguments. Arrays are the
simulator's, and need no conversion; streams have no meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
from numba import cuda
from numpy.typing import DTypeLike, NDArray

HAS_PTX = False
PACKED = False


class open_call:  # noqa: N801 - used like a function
    """Call on the simulator's arrays, which are taken unchanged."""

    def __init__(self, _stream: Any, arrays: dict[str, Any], _interfaces: dict[str, Any]) -> None:
        self.arrays = tuple(arrays.values())

    def close(self) -> None:
        """End the call."""


def launch(kernel: Any, grid: Any, threads: Any, *arguments: Any, shared_bytes: int = 0) -> None:
    """See `numbacalib.runtime.packed_launch.launch`."""
    del shared_bytes
    kernel[grid, threads](*arguments)


def result(array: Any) -> Any:
    """See `numbacalib.runtime.driver_device.result`."""
    return array


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    """See `numbacalib.runtime.driver_device.empty`."""
    return cuda.device_array(shape, dtype)


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    """See `numbacalib.runtime.driver_device.zeros`."""
    return cuda.to_device(np.zeros(shape, dtype))


def from_host(array: NDArray) -> Any:
    """See `numbacalib.runtime.driver_device.from_host`."""
    return cuda.to_device(array)


def constant(values: tuple[float, ...], dtype: DTypeLike = np.int64) -> Any:
    """See `numbacalib.runtime.driver_device.constant`."""
    return cuda.to_device(np.array(values, dtype))


def write(target: Any, array: NDArray) -> None:
    """See `numbacalib.runtime.driver_device.write`."""
    target.copy_to_device(array)


def pinned(size: int) -> NDArray[np.uint8]:
    """See `numbacalib.runtime.driver_device.pinned`."""
    return np.empty(size, np.uint8)


def copy(source: Any, target: Any) -> None:
    """See `numbacalib.runtime.driver_device.copy`."""
    target.copy_to_device(source)


def read(array: Any) -> NDArray:
    """See `numbacalib.runtime.driver_device.read`."""
    return array.copy_to_host()


def start_reading(array: Any) -> Callable[[], NDArray[Any]]:
    """See `numbacalib.runtime.readings.start_reading`."""
    values = read(array)
    return lambda: values


class Transfers:
    """Copies as in `numbacalib.runtime.transfers`, which complete at once."""

    def load(self, source: NDArray[Any]) -> Any:
        """See `numbacalib.runtime.transfers.Transfers.load`."""
        return cuda.to_device(source)

    def store(self, array: Any, target: NDArray[Any]) -> None:
        """See `numbacalib.runtime.transfers.Transfers.store`."""
        target[...] = read(array)

    def _nothing(self) -> None:
        """See `numbacalib.runtime.transfers.Transfers`: there is nothing to wait for."""

    begin = arrive = returned = settle = _nothing


def give_back() -> None:
    """See `numbacalib.runtime.memory.give_back`."""


def address(array: Any) -> int:
    """See `numbacalib.runtime.driver_device.address`."""
    return array.ctypes.data


def current_device() -> int:
    """See `numbacalib.runtime.driver_device.current_device`."""
    return 0


def stream_handle() -> int:
    """See `numbacalib.runtime.driver_device.stream_handle`."""
    return 0


def capability(_number: int) -> tuple[int, int]:
    """Return a capability below any device's, so that kernels use their portable forms."""
    return 0, 0


def has_libraries() -> bool:
    """See `numbacalib.runtime.driver_device.has_libraries`."""
    return False


def missing_packages() -> list[str]:
    """See `numbacalib.runtime.driver_device.missing_packages`."""
    return []


def driver_versions() -> tuple[int, int]:
    """See `numbacalib.runtime.driver_device.driver_versions`; the simulator needs none."""
    return 0, 0


def free_bytes() -> int | None:
    """See `numbacalib.runtime.driver_device.free_bytes`."""
    return None


def total_bytes() -> int:
    """Return so little that code bounded by memory reaches its bounds in tests."""
    return 1 << 20


def taken_bytes() -> int:
    """See `numbacalib.runtime.memory.taken_bytes`."""
    return 0


def in_kernels(function: Any) -> Any:
    """See `numbacalib.runtime.driver_device.in_kernels`: compiled functions do not take the arrays.

    So the function runs as Python, and those that it calls, too.
    """
    plain = function.py_func
    known = dict(plain.__globals__)
    for name in plain.__code__.co_names:
        if hasattr(known.get(name), "py_func"):
            known[name] = in_kernels(known[name])
    return FunctionType(plain.__code__, known)
