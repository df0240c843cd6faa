"""Threads: how kernels and BLAS share the machine.

Three pools of threads take turns: Numba's, and the OpenBLAS pools of NumPy and SciPy. Each spins after its
work, to start the next piece sooner, and so delays the others, which on two cores can take longer than the
work itself. This module, imported before NumPy by the package, lets idle threads sleep instead. Libraries
read the settings when they are loaded, so these are in the environment only for that moment; a variable
that the user has set stays, and a library that was loaded before keeps its own. For the same reason, code
that alternates most between kernels and BLAS does not change pools at all: factors and the columns of GPTQ
are kernels with their own products (`numbacalib.runtime.tile_product`), couplings of columns are computed
by a kernel whose threads each call single-threaded BLAS (`numbacalib.runtime.blas.single_threaded`), and
small factorizations stay on one thread.

Limits: Numba follows NUMBA_NUM_THREADS, or OMP_NUM_THREADS if only that is set; OpenBLAS follows
OPENBLAS_NUM_THREADS or OMP_NUM_THREADS, and in kernels that call it Numba's limit. Several Python threads
may call at once: `launching` lets one kernel or one of our own BLAS calls run at a time, on all threads of
its pool, for every threading layer of Numba (one of them aborts when it is entered twice). Threads of
`numbacalib.runtime.alone` take no turns: the thread that started them holds the turn, and each launches on
itself.

Processes: GNU OpenMP, Numba's usual layer on Linux, ends a forked process that enters it again. So that
`multiprocessing` does not wait forever for such workers, ours raise an error instead. Numba's workqueue
would survive, but is left for the user to choose: it ends every program that runs its own kernels in two
threads, and takes up to twice as long for small layers.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class _Turns:
    """A reentrant lock that is free in a forked process.

    A fork waits until it is free, so that none of our work is running in the copied process.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._here = threading.local()
        self._lost = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._lock.acquire,
                after_in_parent=self._lock.release,
                after_in_child=self._begin_child,
            )

    def _begin_child(self) -> None:
        self._lock.release()
        self._lost = _uses_gnu_openmp()

    def leave_out_this_thread(self) -> None:
        """Let this thread launch without taking a turn: the thread that started it holds the turn."""
        self._here.left_out = True

    @property
    def is_left_out(self) -> bool:
        """Return whether this thread takes no turns."""
        return getattr(self._here, "left_out", False)

    def __enter__(self) -> None:
        if self.is_left_out:
            return
        if self._lost:
            raise RuntimeError(
                "this process was forked from one that had run parallel kernels, and GNU OpenMP does not "
                "survive that: start workers by multiprocessing's spawn or forkserver, or before the first "
                "call, or set NUMBA_THREADING_LAYER=workqueue"
            )
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        if not self.is_left_out:
            self._lock.release()


launching = _Turns()
"""Lock held while one of our kernels or BLAS calls runs."""


@contextmanager
def _sleeping_when_idle() -> Iterator[None]:
    """Set the variables that GNU OpenMP and OpenBLAS read when they are loaded, unless they are set."""
    settings = {"OMP_WAIT_POLICY": "passive", "OPENBLAS_THREAD_TIMEOUT": "4"}
    absent = [name for name in settings if name not in os.environ]
    os.environ.update({name: settings[name] for name in absent})
    try:
        yield
    finally:
        for name in absent:
            del os.environ[name]


def _limit_numba() -> None:
    """Let Numba follow OMP_NUM_THREADS; the variable stays, since Numba reads it again later."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit.isdigit() and 0 < int(limit) <= (os.cpu_count() or 1):
        os.environ.setdefault("NUMBA_NUM_THREADS", limit)


def thread_count() -> int:
    """Return the number of threads that kernels use, without starting Numba's pool."""
    return config.NUMBA_NUM_THREADS if _layer() is None else get_num_threads()


def _uses_gnu_openmp() -> bool:
    """Return whether Numba's threads were started, by any code, as GNU OpenMP's."""
    return sys.platform == "linux" and _layer() == "omp"


def _layer() -> str | None:
    """Return Numba's threading layer, or None if its threads have not been started."""
    try:
        return threading_layer()
    except ValueError:
        return None


_limit_numba()
with _sleeping_when_idle():
    import numpy  # noqa: F401

    import numbacalib.runtime.scipy_routines  # noqa: F401  (loads SciPy's BLAS)

    with suppress(ImportError):
        from numba.np.ufunc import omppool  # noqa: F401  (absent where Numba has no OpenMP)

from numba import config, get_num_threads, threading_layer  # noqa: E402  (after the wait policy is set)
