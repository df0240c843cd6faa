"""Blocks of numba-cuda's simulator whose threads run in turns, from one barrier to the next.

Its own blocks start a thread of the system for each of theirs and poll them, which takes most of the time,
and let them race where they make a shared array. Turns change direction at each barrier, so that where one
is missing some thread reads what another has not written.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numba.cuda.simulator import kernel


class Thread(kernel.BlockThread):
    """Runs threads of a block one after the other, up to one that waits at a barrier and goes on later."""

    def __init__(self, function: Callable[[], None], block: Block, where: tuple[int, ...]) -> None:
        super().__init__(function, block, where, (0, 0, 0), False)
        self._function = function
        self._turn = threading.Lock()
        self._turn.acquire()
        self._has_waited = False
        self.failure: Exception | None = None
        self.ended = False

    def let_run(self) -> None:
        """Go on until the next barrier or the end."""
        if self.ident is None:
            self.start()
        else:
            self._turn.release()
        self._manager.turn.acquire()

    def run(self) -> None:
        try:
            while self._manager.points and not self._has_waited:
                self._become(self._manager.points.popleft())
                self._function()
        except Exception as error:
            self.failure = error
        self.ended = True
        self._manager.turn.release()

    def syncthreads(self) -> None:
        self._has_waited = True
        self._manager.turn.release()
        self._turn.acquire()
        if self.abort:
            raise RuntimeError("another thread of the block has failed")

    def _become(self, point: tuple[int, ...]) -> None:
        self.threadIdx = kernel.Dim3(*point)
        self.thread_id = int(np.ravel_multi_index(point[::-1], self._manager.shape[::-1]))


class Block(kernel.BlockManager):
    """The threads of a block, one of which runs at a time."""

    def run(self, grid_point: tuple[int, ...], *arguments: Any) -> None:
        self.shape = self._block_dim
        self.points = deque(np.ndindex(*self.shape))
        self.turn = threading.Lock()
        self.turn.acquire()
        waiting: list[Thread] = []
        while self.points:
            thread = Thread(lambda: self._f(*arguments), self, grid_point)
            waiting = self._run([thread], waiting)
        while waiting:
            waiting = self._run(waiting[::-1])

    def _run(self, threads: list[Thread], others: list[Thread] = ()) -> list[Thread]:
        """Let threads run in turns; return the others, and those that wait at the next barrier."""
        for thread in threads:
            thread.let_run()
            if thread.failure is not None:
                for each in (*threads, *others):
                    each.abort = True
                    if each.ident is not None and not each.ended:
                        each.let_run()
                raise thread.failure
        return [*others, *(thread for thread in threads if not thread.ended)]


def install() -> None:
    """Let every kernel of the simulator run in such blocks."""
    kernel.BlockManager = Block
