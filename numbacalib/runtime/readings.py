"""Numbers on their way from a device to the host, which does not wait until it needs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda
from numpy.typing import NDArray

from numbacalib.runtime.driver_device import current_device, stream_handle
from numbacalib.runtime.extras import extra
from numbacalib.runtime.streams import check

with extra("cuda"):
    from cuda.bindings import driver

WORDS = 256
"""Words that are made together: the driver may wait for the device before it gives pinned memory."""


class _Word:
    """A number in memory to which the device copies while the host goes on."""

    def __init__(self, memory: NDArray[np.int64]) -> None:
        self.memory = memory
        self.address = memory.ctypes.data
        self.copied = check(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))


_spare: dict[int, list[_Word]] = {}
"""Words of each device that no reading has: making one takes longer than a check."""


class _Reading:
    """A number on its way to the host."""

    def __init__(self, array: Any) -> None:
        self._spare = _spare.setdefault(current_device(), [])
        self._value: int | None = None
        try:
            self._word = self._spare.pop()
        except IndexError:
            memory = cuda.pinned_array(WORDS, np.int64)
            self._word, *others = (_Word(each) for each in np.split(memory, WORDS))
            self._spare += others
        stream = driver.CUstream(stream_handle())
        # nobody may have waited for the copy before
        check(driver.cuStreamWaitEvent(stream, self._word.copied, 0))
        check(driver.cuMemcpyDtoHAsync(self._word.address, array.address, 8, stream))
        check(driver.cuEventRecord(self._word.copied, stream))

    def value(self) -> int:
        if self._value is None:
            check(driver.cuEventSynchronize(self._word.copied))
            self._value = int(self._word.memory[0])
        return self._value

    def __del__(self) -> None:
        self._spare.append(self._word)


def start_reading(array: Any) -> Callable[[], int]:
    """Start to copy an array [1] of int64 to the host; return what waits for the copy alone."""
    return _Reading(array).value
