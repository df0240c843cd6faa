"""Compilation options that all CPU kernels and spec functions share.

No fastmath anywhere: the order of additions is the same at any vector width and thread count.
`error_model="numpy"` makes division follow IEEE 754 instead of raising, as NumPy does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property, update_wrapper
from pathlib import Path
from typing import Any

from numbacalib.runtime.threads import launching, thread_count  # before Numba

import numpy as np  # isort: skip
from numba import config, njit  # isort: skip
from numba.core.event import Event, Listener, register  # isort: skip

from numbacalib.runtime import kernel_files  # isort: skip
from numbacalib.runtime.notices import notices  # isort: skip
from numbacalib.runtime.workers import workers  # isort: skip

try:
    from numbacalib.runtime.kernel_cache import KernelCache
except ImportError:  # a Numba whose parts have other names
    KernelCache = None  # type: ignore[assignment, misc]

PATIENCE = 1.0
"""Seconds that a kernel may compile before the user is notified."""

scalar = njit(error_model="numpy", no_cfunc_wrapper=True)
"""Decorator of spec functions and of parts of kernels: compiled into their callers, without a C wrapper;
numba-cuda compiles the same source again."""

inlined = njit(error_model="numpy", no_cfunc_wrapper=True, inline="always")
"""Decorator of the shortest of these, and of parts with one caller: inlined before type inference, which
saves a unit of compilation."""


class kernel:  # noqa: N801  (a decorator)
    """Decorator for CPU kernels: parallel, cached on disk, callable from several Python threads."""

    _compile = staticmethod(
        njit(parallel=True, nogil=True, error_model="numpy", no_cfunc_wrapper=True)
    )

    def __init__(self, function: Callable[..., Any]) -> None:
        update_wrapper(self, function)

    def __call__(self, *arguments: Any) -> Any:
        with launching:
            return self._compiled(*arguments)

    @cached_property
    def _compiled(self) -> Any:
        """Numba's dispatcher of the kernel; the function itself if NUMBA_DISABLE_JIT is set."""
        compiled = self._compile(self.__wrapped__)  # type: ignore[attr-defined]
        if config.DISABLE_JIT:
            return compiled
        if KernelCache is not None and hasattr(compiled, "_cache"):
            compiled._cache = KernelCache(self.__wrapped__)  # type: ignore[attr-defined]
        else:
            _enable_caching_of_numba(compiled)
        _announcement.kernels.add(compiled)
        return compiled


class task_kernel(kernel):  # noqa: N801
    """Decorator for CPU kernels that run in Python threads, each of which takes tasks from a counter.

    Numba compiles the body of a parallel loop five times, once for each layer that it wraps around it; a
    plain function is compiled once.
    """

    _compile = staticmethod(njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True))

    def __call__(self, tasks: int, *arguments: Any) -> None:
        """Run the kernel on as many threads as Numba has, if there are enough tasks.

        Each gets the task counter, int64 [1], before the arguments. An error of any is raised.
        """
        count = min(thread_count(), tasks)
        arguments = (np.zeros(1, np.int64), *arguments)
        with launching:
            if count == 1:
                self._compiled(*arguments)
            elif count > 1:
                workers().run(count - 1, self._compiled, arguments)


def _enable_caching_of_numba(compiled: Any) -> None:
    """Let Numba cache a kernel, in a folder for all sources: Numba checks only the kernel's own file."""
    folder = kernel_files.first_writable()
    if folder is None:
        return
    sources = kernel_files.sources(Path(compiled.py_func.__code__.co_filename)).hex()[:16]
    given = config.CACHE_DIR
    config.CACHE_DIR = str(folder / sources)
    try:
        compiled.enable_caching()
    finally:
        config.CACHE_DIR = given


class _Announcement(Listener):
    """Notifies the user once, when a kernel compiles for longer than `PATIENCE`."""

    def __init__(self) -> None:
        self.kernels: set[Any] = set()
        self._timer: threading.Timer | None = None
        self._told = False

    def on_start(self, event: Event) -> None:
        if event.data["dispatcher"] in self.kernels and not self._told:
            self._timer = threading.Timer(PATIENCE, self._tell)
            self._timer.daemon = True
            self._timer.start()

    def on_end(self, event: Event) -> None:
        if event.data["dispatcher"] in self.kernels and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self) -> None:
        self._told = True
        notices.warning(
            "compiling kernels, once for this machine and each dtype (ahead: `numbacalib warm-up`)"
        )


_announcement = _Announcement()
register("numba:compile", _announcement)
