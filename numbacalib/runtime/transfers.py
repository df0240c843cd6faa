"""Copies between pinned host memory and a device, beside what the device works on."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from numbacalib.runtime import driver_device as device
from numbacalib.runtime.extras import extra
from numbacalib.runtime.streams import check, wait

with extra("cuda"):
    from cuda.bindings import driver


class Transfers:
    """Copies to the current device and back, a stream for each, in the order of its work.

    The host waits for nothing but `settle`. Each kind of wait is that of the stream on which the caller's
    calls run.
    """

    def __init__(self) -> None:
        device.current_device()  # a thread's first call has no context yet
        # the default stream waits for others, unless they say that it is not to
        flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        self._inward, self._outward = (int(check(driver.cuStreamCreate(flags))) for _ in range(2))

    def begin(self) -> None:
        """Let what is loaded from now on wait for what was stored."""
        wait(self._inward, self._outward)

    def load(self, source: NDArray[Any]) -> Any:
        """Start to copy a pinned array to the device; see `arrive`."""
        target = device.empty(source.shape, source.dtype)
        wait(self._inward, device.stream_handle())  # which had the memory before
        copied = source.ctypes.data, source.nbytes, driver.CUstream(self._inward)
        check(driver.cuMemcpyHtoDAsync(target.address, *copied))
        return target

    def arrive(self) -> None:
        """Wait, on the device, for all that is on its way there."""
        wait(device.stream_handle(), self._inward)

    def store(self, array: Any, target: NDArray[Any]) -> None:
        """Start to copy an array of the device, once it is made, to a pinned one.

        It must stay as it is until `returned`.
        """
        wait(self._outward, device.stream_handle())
        copied = array.address, target.nbytes, driver.CUstream(self._outward)
        check(driver.cuMemcpyDtoHAsync(target.ctypes.data, *copied))

    def returned(self) -> None:
        """Wait, on the device, for all that is on its way to the host."""
        wait(device.stream_handle(), self._outward)

    def settle(self) -> None:
        """Wait, on the host, until all that was stored is there."""
        check(driver.cuStreamSynchronize(driver.CUstream(self._outward)))
