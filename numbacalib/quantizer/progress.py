"""A progress bar for long work: what is being done, how far it is, how long it will take."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from numbacalib.terminal import GuardedStream

WIDTH = 24
"""Characters of the bar."""


class Progress:
    """Progress over a known number of equal steps, shown on standard error.

    On a terminal one line is redrawn; elsewhere (a log file) each step that `line` asks for prints a
    line of its own. A context manager, so that the terminal's line is always ended.

    Parameters
    ----------
    steps : int
        Steps in all.
    stream : text stream, optional
        Standard error by default. One that is closed, full or gone loses the bar, not the work.
    """

    def __init__(self, steps: int, stream: TextIO | None = None) -> None:
        self._steps = steps
        self._stream = GuardedStream(stream or sys.stderr)
        self._redraw = self._stream.isatty()
        self._done = 0
        self._begin = time.monotonic()

    def show(self, what: str) -> None:
        """Say what is being done now; redrawn on a terminal, silent elsewhere."""
        if self._redraw:
            self._stream.write(f"\r\x1b[K{self._bar()} {what}")
            self._stream.flush()

    def step(self, what: str = "") -> None:
        """Count one step as done; `what`, if given, is worth a line in a log file."""
        self._done += 1
        if what and not self._redraw:
            self._stream.write(f"{self._bar()} {what}\n")
            self._stream.flush()

    def _bar(self) -> str:
        filled = WIDTH * self._done // self._steps
        percent = 100 * self._done // self._steps
        return f"[{'#' * filled}{'.' * (WIDTH - filled)}] {percent:3d} % {self._left()}"

    def _left(self) -> str:
        if not self._done:
            return "--:-- left"
        elapsed = time.monotonic() - self._begin
        seconds = round(elapsed / self._done * (self._steps - self._done))
        return f"{seconds // 60:d}:{seconds % 60:02d} left"

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._redraw:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
