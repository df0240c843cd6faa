"""Many small jobs at once, each on one thread: what is too small to be divided among all of them."""

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

    Kernels and BLAS inside run on their caller's thread, and wait for no other, so that what lies between
    them keeps nobody waiting either. Results are those of one call after the other, to the bit. Numba's
    workqueue may not be entered by several threads: with it, and before any kernel has run, the calls come
    one after the other. The first item whose call raises an error ends the rest.
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
    """Let this thread launch without its turn, where several threads may launch, and on few threads.

    They are a quarter of those that kernels have where no number is given: what goes on beside other work
    shall not stand in its way.
    """
    if _threads_may_launch():
        launching.leave_out_this_thread()
        set_num_threads(threads or max(1, get_num_threads() // 4))


def _threads_may_launch() -> bool:
    try:
        return threading_layer() != "workqueue"
    except ValueError:  # no layer yet
        return False
