"""Python threads that run a function beside their caller, and the processors that they wake up on."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from queue import SimpleQueue
from typing import Any

_current_processor: Callable[[], int] | None = None
if hasattr(os, "sched_setaffinity"):
    _current_processor = getattr(ctypes.CDLL(None), "sched_getcpu", None)


class Workers:
    """Threads beside the caller's, which sleep between calls.

    Linux wakes a thread on the processor that it last ran on, and does not look for an idle one if the
    processors have been busy of late. Where that is the caller's own processor, both threads share it until
    the next load balancing, for up to 5 ms of a call, while another is idle. So the workers may use all of
    the caller's processors but the one that it is on.
    """

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._processors: set[int] = set()
        self._tasks: SimpleQueue = SimpleQueue()

    def run(self, others: int, function: Callable[..., Any], arguments: tuple) -> None:
        """Call a function in the caller's thread and in `others` more, and raise the first error of any."""
        for _ in range(len(self._threads), others):
            self._threads.append(threading.Thread(target=self._work, daemon=True))
            self._threads[-1].start()
            self._processors = set()
        self._leave_processor_to_caller()
        ends: SimpleQueue = SimpleQueue()
        for _ in range(others):
            self._tasks.put((function, arguments, ends))
        try:
            function(*arguments)
        finally:
            errors = [ends.get() for _ in range(others)]
        for error in filter(None, errors):
            raise error

    def _leave_processor_to_caller(self) -> None:
        """Restrict the workers to the caller's other processors, if there are any."""
        if _current_processor is None:
            return
        processors = os.sched_getaffinity(0) - {_current_processor()}
        if not processors or processors == self._processors:
            return
        self._processors = processors
        for worker in filter(None, (thread.native_id for thread in self._threads)):
            with suppress(OSError):  # not allowed, or processors were taken away
                os.sched_setaffinity(worker, processors)

    def _work(self) -> None:
        while True:
            function, arguments, ends = self._tasks.get()
            failure = None
            try:
                function(*arguments)
            except BaseException as error:
                failure = error
            del function, arguments  # a sleeping thread must keep no array alive
            ends.put(failure)
            del failure, ends


@cache
def workers() -> Workers:
    """Return the workers of this process."""
    return Workers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=workers.cache_clear)  # a forked child has none of them
