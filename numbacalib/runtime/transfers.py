"""Copies between pinned host memory and a device, beside what the device works on.

There is a stream for each direction. What the host waits for is nothing but `settle`.
"""

from __future__ import annotations

import functools
from typing import Any

from numpy.typing import NDArray

from numbacalib.runtime import device, streams
from numbacalib.runtime.streams import check

if not device.SIMULATED:
    from cuda.bindings import driver


@functools.cache
def transfers(place: str) -> Transfers:
    """Return the copies of the current device, which `place` names."""
    del place
    return Transfers()


class Transfers:
    """Copies to a device and back, in the order of its work on the current stream."""

    def __init__(self) -> None:
        if not device.SIMULATED:
            device.current_device()
            # one that waits for no other stream by itself, as the default one's are waited for
            flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
            self._inward, self._outward = (
                int(check(driver.cuStreamCreate(flags))) for _ in range(2)
            )

    def begin(self) -> None:
        """Let what is loaded from now on wait for what was stored."""
        if not device.SIMULATED:
            streams.wait(self._inward, self._outward)

    def load(self, source: NDArray[Any]) -> Any:
        """Start to copy a pinned array to the device; see `arrive`."""
        if device.SIMULATED:
            return device.from_host(source)
        target = device.empty(source.shape, source.dtype)
        streams.wait(self._inward, device.stream_handle())  # which had the memory before
        copied = source.ctypes.data, source.nbytes, driver.CUstream(self._inward)
        check(driver.cuMemcpyHtoDAsync(target.address, *copied))
        return target

    def arrive(self) -> None:
        """Let the current stream wait for all that is on its way to the device."""
        if not device.SIMULATED:
            streams.wait(device.stream_handle(), self._inward)

    def store(self, array: Any, target: NDArray[Any]) -> None:
        """Start to copy an array of the device, once the current stream has made it, to a pinned one.

        The array must live until the current stream comes after `returned`.
        """
        if device.SIMULATED:
            target[...] = device.read(array)
            return
        streams.wait(self._outward, device.stream_handle())
        copied = array.address, target.nbytes, driver.CUstream(self._outward)
        check(driver.cuMemcpyDtoHAsync(target.ctypes.data, *copied))

    def returned(self) -> None:
        """Let the current stream wait for all that is on its way to the host."""
        if not device.SIMULATED:
            streams.wait(device.stream_handle(), self._outward)

    def settle(self) -> None:
        """Wait until all that was stored is on the host."""
        if not device.SIMULATED:
            check(driver.cuStreamSynchronize(driver.CUstream(self._outward)))
