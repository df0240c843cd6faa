"""CUDA arrays of any library, their memory and their kernels: of a device, or of Numba's simulator.

Kernel modules import `cuda` from here, and this module is imported only once a CUDA array was seen. It
alone checks whether kernels run in the simulator: `driver_device` and `simulated_device` are twins, and
all differences are between these two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from numba import cuda
from numba.core import config

from numbacalib.runtime.array import DeviceArray

SIMULATED = bool(config.ENABLE_CUDASIM)
"""True where kernels run in Numba's CUDA simulator, as Python."""

if TYPE_CHECKING or not SIMULATED:
    from numbacalib.runtime.driver_device import (
        HAS_PTX,
        address,
        capability,
        constant,
        copy,
        current_device,
        driver_versions,
        empty,
        free_bytes,
        from_host,
        has_libraries,
        in_kernels,
        missing_packages,
        open_call,
        pinned,
        read,
        result,
        stream_handle,
        total_bytes,
        write,
        zeros,
    )
    from numbacalib.runtime.memory import give_back, taken_bytes
    from numbacalib.runtime.packed_launch import PACKED, launch
    from numbacalib.runtime.readings import start_reading
    from numbacalib.runtime.transfers import Transfers
else:
    from numbacalib.runtime.simulated_device import (
        HAS_PTX,
        PACKED,
        Transfers,
        address,
        capability,
        constant,
        copy,
        current_device,
        driver_versions,
        empty,
        free_bytes,
        from_host,
        give_back,
        has_libraries,
        in_kernels,
        launch,
        missing_packages,
        open_call,
        pinned,
        read,
        result,
        start_reading,
        stream_handle,
        taken_bytes,
        total_bytes,
        write,
        zeros,
    )

__all__ = [
    "HAS_PTX",
    "PACKED",
    "DeviceArray",
    "Transfers",
    "address",
    "capability",
    "constant",
    "copy",
    "cuda",
    "current_device",
    "driver_versions",
    "empty",
    "free_bytes",
    "from_host",
    "give_back",
    "has_capability_9_0",
    "has_libraries",
    "in_kernels",
    "launch",
    "may_share_memory",
    "missing_packages",
    "open_call",
    "pinned",
    "read",
    "result",
    "sized",
    "start_reading",
    "stream_handle",
    "taken_bytes",
    "total_bytes",
    "write",
    "zeros",
]

Size = TypeVar("Size")


def sized(real: Size, *, simulated: Size) -> Size:
    """Return a size for kernels: a small one in the simulator, whose threads are Python's."""
    return simulated if SIMULATED else real


def may_share_memory(left: Any, right: Any) -> bool:
    """Return whether the address ranges of two device arrays overlap."""
    (low, high), (first, last) = _extent(left), _extent(right)
    return low < last and first < high


def _extent(array: Any) -> tuple[int, int]:
    """Return the first address of a device array and the address past its end."""
    reach = [(n - 1) * step for n, step in zip(array.shape, array.strides, strict=True)]
    low = address(array) + sum(step for step in reach if step < 0)
    high = address(array) + sum(step for step in reach if step > 0) + array.dtype.itemsize
    return low, high


def has_capability_9_0() -> bool:
    """Return whether the current device's compute capability is 9.0, as `ptx` needs."""
    return capability(current_device()) == (9, 0)
