"""One way to compile: the options that every CPU kernel and spec function shares.

No fastmath anywhere: the order of additions is the same at any vector width and thread count.
`error_model="numpy"` makes division follow IEEE 754 instead of raising, as NumPy does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache, update_wrapper
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

from numbacalib.runtime.garbage import collector_paused
from numbacalib.runtime.threads import launching  # before Numba

from numba import config, njit  # isort: skip
from numba.core.caching import FunctionCache  # isort: skip
from numba.core.compiler_lock import global_compiler_lock  # isort: skip
from numba.core.dispatcher import Dispatcher  # isort: skip
from numba.core.registry import cpu_target  # isort: skip
from numba.core.runtime import rtsys  # isort: skip

LATE_IMPORTS = (
    "multiprocessing",
    "numba.core.inline_closurecall",
    "numba.cpython.charseq",
    "numba.cpython.setobj",
    "numba.np.npyimpl",
    "numba.np.random.generator_methods",
    "numba.np.random.legacy",
    "numba.typed",
    "numpy.ma",
)
"""Modules that Numba imports at its first kernel, while the caller waits."""

for _module in LATE_IMPORTS:
    with suppress(ModuleNotFoundError):  # other versions of Numba may have others
        import_module(_module)
rtsys.initialize(cpu_target.target_context)  # else compiled at its first kernel

scalar = njit(error_model="numpy", no_cfunc_wrapper=True)
"""For spec functions and parts of kernels: compiled into their callers, and not for C; numba-cuda compiles
the same source again."""

inlined = njit(error_model="numpy", no_cfunc_wrapper=True, inline="always")
"""For the shortest of them, and for parts with one caller: put into its code before types are found, which
spares a unit of compilation."""


@cache
def _compiled_sources() -> bytes:
    """Digest of the files whose functions and constants kernels of other files are compiled from."""
    package = Path(__file__).parent.parent
    digest = sha256()
    for folder in ("linalg", "ops", "runtime", "spec"):
        for source in sorted((package / folder).rglob("*.py")):
            digest.update(source.read_bytes())
    return digest.digest()


class _KernelCache(FunctionCache):
    """Numba's cache on disk, whose own rule is that a kernel is stale when its own file has changed."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        file = self._cache_file
        file._source_stamp = file._source_stamp, _compiled_sources()


@cache
def _prepare_numba() -> None:
    """Have Numba register its functions, as it does before any first kernel; they all stay.

    Many of them have all registered again before they are themselves. That finds nothing which is not
    on its way already, and takes long: it is spared.
    """
    context = cpu_target.target_context
    register = context.refresh
    with global_compiler_lock, collector_paused():  # other threads may compile kernels of their own
        context.refresh = _nothing
        try:
            register()
        finally:
            del context.refresh


def _nothing() -> None:
    """What registers all functions again while they are being registered."""


class kernel:  # noqa: N801  (a decorator)
    """Decorator for CPU kernels: parallel, cached on disk, callable from several Python threads."""

    _compile = staticmethod(
        njit(parallel=True, nogil=True, error_model="numpy", no_cfunc_wrapper=True)
    )

    def __init__(self, function: Callable[..., Any]) -> None:
        self._compiled = self._compile(function)
        if isinstance(self._compiled, Dispatcher):  # not where NUMBA_DISABLE_JIT is set
            self._compiled._cache = _KernelCache(function)
        update_wrapper(self, function)

    def __call__(self, *arguments: Any) -> Any:
        with launching:
            _prepare_numba()
            return self._compiled(*arguments)


@cache
def _threads() -> ThreadPoolExecutor:
    """Threads of Python's beside the caller's; they sleep between tasks."""
    return ThreadPoolExecutor(max(config.NUMBA_NUM_THREADS - 1, 1))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # a forked child has none of them


class task_kernel(kernel):  # noqa: N801
    """Decorator for CPU kernels whose callers claim tasks from a counter, each in a thread of Python's.

    The body of a parallel loop goes through the compiler five times, once for each layer that Numba puts
    around it; what is called by itself goes through it once.
    """

    _compile = staticmethod(njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True))

    def __call__(self, workers: int, *arguments: Any) -> None:
        """Run the kernel `workers` times at once, and raise what one of them raised."""
        with launching:
            _prepare_numba()
            submit = _threads().submit
            others = [submit(self._compiled, *arguments) for _ in range(workers - 1)]
            try:
                self._compiled(*arguments)
            finally:
                wait(others)
            for other in others:
                other.result()
