"""Python's search for garbage, kept out of where everything that is made stays."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Do not look for cyclic garbage meanwhile, nor right afterwards among what was made.

    It is for what makes many objects that all stay, among which the collector would look again and again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:  # nothing that was frozen by others thaws
            gc.freeze()
            gc.unfreeze()  # all into the oldest generation
        if enabled:
            gc.enable()
