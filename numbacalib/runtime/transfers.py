"""Copies between pinned host memory and a device, concurrent with the device's work."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from numbacalib.runtime import driver_device as device
from numbacalib.runtime.extras import extra
from numbacalib.runtime.streams import check, wait

with extra("cuda"):
    from cuda.bindings import driver


class Transfers:
    """Copies to the current device and back, a stream for each direction, ordered with the device's work.

    The host waits only in `settle`. The other waits are of the stream on which the caller's calls run.
    """

    def __init__(self) -> None:
        device.current_device()  # a thread's first call has no context yet
        # without this flag, the default stream would wait for these streams
        flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        self._inward, self._outward = (int(check(driver.cuStreamCreate(flags))) for _ in range(2))

    def begin(self) -> None:
        """Let later loads wait for the stores so far."""
        wait(self._inward, self._outward)

    def load(self, source: NDArray[Any]) -> Any:
        """Start to copy a pinned array to the device; see `arrive`."""
        target = device.empty(source.shape, source.dtype)
        wait(self._inward, device.stream_handle())  # earlier work may still use the memory
        copied = source.ctypes.data, source.nbytes, driver.CUstream(self._inward)
        check(driver.cuMemcpyHtoDAsync(target.address, *copied))
        return target

    def arrive(self) -> None:
        """Wait, on the device, for all loads so far."""
        wait(device.stream_handle(), self._inward)

    def store(self, array: Any, target: NDArray[Any]) -> None:
        """Start to copy a device array, once it is computed, to a pinned one.

        It must not change before `returned`.
        """
        wait(self._outward, device.stream_handle())
        copied = array.address, target.nbytes, driver.CUstream(self._outward)
        check(driver.cuMemcpyDtoHAsync(target.ctypes.data, *copied))

    def returned(self) -> None:
        """Wait, on the device, for all stores so far."""
        wait(device.stream_handle(), self._outward)

    def settle(self) -> None:
        """Wait, on the host, for all stores so far."""
        check(driver.cuStreamSynchronize(driver.CUstream(self._outward)))
