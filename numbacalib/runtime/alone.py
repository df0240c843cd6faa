"""Many small jobs at once, each on one thread, because each is too small to be divided among threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from numba import get_num_threads, set_num_threads, threading_layer

from numbacalib.runtime.blas import single_threaded
from numbacalib.runtime.threads import launching

Item = TypeVar("Item")
Result = TypeVar("Result")


def each_alone(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Call a function of NumPy arrays for each item, as many at a time as kernels have threads.

    Kernels and BLAS inside run on their caller's thread without waiting for other threads, and the code
    between them blocks none. Results are bit-identical to sequential calls. Numba's workqueue may not be
    entered by several threads: with it, and before any kernel has run, the calls are sequential. The first
    item whose call raises an error ends the rest.
    """
    workers = min(get_num_threads(), len(items))
    if workers < 2 or not _threads_may_launch():
        return [function(item) for item in items]
    with (
        single_threaded(),
        ThreadPoolExecutor(workers, initializer=begin_alone, initargs=(1,)) as threads,
    ):
        calls = [threads.submit(copy_context().run, function, item) for item in items]
        try:
            return [call.result() for call in calls]
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def begin_alone(threads: int | None = None) -> None:
    """Let this thread launch on a few threads without taking turns, if several threads may launch.

    By default on a quarter of the kernels' threads, so that background work does not slow down other work.
    """
    if _threads_may_launch():
        launching.leave_out_this_thread()
        set_num_threads(threads or max(1, get_num_threads() // 4))


def _threads_may_launch() -> bool:
    try:
        return threading_layer() != "workqueue"
    except ValueError:  # no layer yet
        return False
