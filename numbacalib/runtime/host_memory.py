"""Return of freed host memory to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Give freed memory that glibc still holds back to the system; other C libraries are left alone.

    glibc keeps freed chunks below some 32 MB for reuse, separately for each thread, but the next phase of a
    run seldom needs the same sizes. https://man7.org/linux/man-pages/man3/malloc_trim.3.html
    """
    with suppress(OSError, AttributeError, TypeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)
