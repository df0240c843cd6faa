"""Blocks of numba-cuda's simulator whose threads run in turns, from one barrier to the next.

Its own blocks poll their threads, which keeps these waiting most of the time, and let them race where they
make a shared array. Turns change their direction at each barrier, so that where one is missing some thread
reads what another has not written.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numba.cuda.simulator import kernel


class Thread(kernel.BlockThread):
    """A thread of a block, which runs while its block waits."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._turn = threading.Lock()
        self._turn.acquire()
        self.ended = False

    def resume(self) -> None:
        """Begin, or go on behind the barrier."""
        if self.ident is None:
            self.start()
        else:
            self._turn.release()

    def run(self) -> None:
        super().run()
        self.ended = True
        self._manager.turn.release()

    def syncthreads(self) -> None:
        self._manager.turn.release()
        self._turn.acquire()
        if self.abort:
            raise RuntimeError("another thread of the block has failed")


class Block(kernel.BlockManager):
    """The threads of a block, one of which runs at a time."""

    def run(self, grid_point: tuple[int, ...], *arguments: Any) -> None:
        self.turn = threading.Lock()
        self.turn.acquire()
        waiting = [
            Thread(lambda: self._f(*arguments), self, grid_point, point, self._debug)
            for point in np.ndindex(*self._block_dim)
        ]
        while waiting:
            for thread in waiting:
                self._let_run(thread)
                if thread.exception and not thread.abort:
                    self._abort(waiting)
                    raise thread.exception[0].with_traceback(thread.exception[1])
            waiting = [thread for thread in reversed(waiting) if not thread.ended]

    def _let_run(self, thread: Thread) -> None:
        """Let a thread run to its next barrier, or to its end."""
        thread.resume()
        self.turn.acquire()

    def _abort(self, threads: list[Thread]) -> None:
        """End all threads that wait at a barrier."""
        for thread in threads:
            if thread.ident is not None and not thread.ended:
                thread.abort = True
                self._let_run(thread)


def install() -> None:
    """Let every kernel of the simulator run in such blocks."""
    kernel.BlockManager = Block
