"""Memory of the host that was freed, given back to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Give back what the C library keeps of memory that was freed, where it is glibc.

    Chunks below some 32 MB are kept for later ones, of each thread apart: what one phase of a run has freed
    is seldom what the next one takes. https://man7.org/linux/man-pages/man3/malloc_trim.3.html
    """
    with suppress(OSError, AttributeError, TypeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)
