"""Numbers on their way from a device to the host, which does not wait until it needs them."""

from __future__ import annotations

from collections import defaultdict
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
UNREAD = 4096
"""Words that nobody read: with more of them the device is waited for, to have them back."""


class _Word:
    """A number in memory to which the device copies while the host goes on."""

    def __init__(self, memory: NDArray[np.int64]) -> None:
        self.memory = memory
        self.address = memory.ctypes.data
        self.copied = check(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))


class _Words:
    """Words of a device that no reading has: making one takes longer than a check.

    The copy to a word that nobody read may still be under way. Its event does not say so safely: the stream
    that it was recorded on may be gone, and then the driver reads memory that is not its own any more.
    """

    def __init__(self) -> None:
        self.read: list[_Word] = []
        self.unread: list[_Word] = []

    def take(self) -> _Word:
        """Return a word to which nothing is on its way."""
        try:
            return self.read.pop()
        except IndexError:
            pass
        if len(self.unread) < UNREAD:
            found = list(np.split(cuda.pinned_array(WORDS, np.int64), WORDS))
        else:
            unread, self.unread = self.unread, []
            check(driver.cuCtxSynchronize())
            for word in unread:
                check(driver.cuEventDestroy(word.copied))
            found = [word.memory for word in unread]
        word, *others = map(_Word, found)
        self.read += others
        return word


_words: defaultdict[int, _Words] = defaultdict(_Words)
"""By the number of their device."""


class _Reading:
    """A number on its way to the host."""

    def __init__(self, array: Any, words: _Words, word: _Word) -> None:
        self._words, self._word = words, word
        self._value: int | None = None
        stream = driver.CUstream(stream_handle())
        check(driver.cuMemcpyDtoHAsync(word.address, array.address, 8, stream))
        check(driver.cuEventRecord(word.copied, stream))

    def value(self) -> int:
        if self._value is None:
            check(driver.cuEventSynchronize(self._word.copied))
            self._value = int(self._word.memory[0])
        return self._value

    def __del__(self) -> None:
        words = self._words
        (words.unread if self._value is None else words.read).append(self._word)


def start_reading(array: Any) -> Callable[[], int]:
    """Start to copy an array [1] of int64 to the host; return what waits for the copy alone."""
    words = _words[current_device()]
    return _Reading(array, words, words.take()).value
