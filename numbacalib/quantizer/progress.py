"""Progress of long work: what is being done, how fast it goes, how long it will take.

Shown on standard error unless `numbacalib.terminal.reporting` says otherwise: on a terminal as a bar of
tqdm, elsewhere (a log file, a pipe) as one line for each step that is worth one.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, TextIO

from numbacalib.runtime.extras import extra
from numbacalib.terminal import GuardedStream, callback


class Progress:
    """Progress over a known number of steps, of about the same length.

    A context manager, so that the terminal's line is always ended.

    Parameters
    ----------
    steps : int
        Steps in all.
    stream : text stream, optional
        Standard error by default. One that is closed, full or gone loses the bar, not the work.
    done : int, default 0
        Steps that were done before and say nothing of the time that the others take.
    """

    def __init__(self, steps: int, stream: TextIO | None = None, done: int = 0) -> None:
        self._steps, self._done = steps, done
        self._what = ""
        self._callback = callback()
        self._stream = GuardedStream(stream or sys.stderr)
        self._bar: Any = None
        if self._callback is None and self._stream.isatty():
            self._bar = _bar(steps, done, self._stream)

    def show(self, what: str) -> None:
        """Say what is being done now; silent where there is neither a terminal nor a callback."""
        self._what = what
        if self._callback is not None:
            self._callback(what, self._done, self._steps)
        elif self._bar is not None:
            self._bar.set_postfix_str(what)

    def step(self, what: str = "") -> None:
        """Count one step as done; `what`, if given, is worth a line in a log file."""
        self._done += 1
        if self._callback is not None:
            self._callback(what or self._what, self._done, self._steps)
        elif self._bar is not None:
            self._bar.update()
        elif what:
            self._stream.write(f"{100 * self._done // self._steps:3d} % {what}\n")
            self._stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def _bar(steps: int, done: int, stream: GuardedStream) -> Any:
    """A bar that goes when it is closed; the rate is of the last steps, as tqdm smooths it."""
    with extra("models"):
        from tqdm import tqdm

    layout = (
        "{percentage:3.0f} %|{bar:24}| {n_fmt}/{total_fmt} [{elapsed}, {remaining} left]{postfix}"
    )
    return tqdm(
        total=steps, initial=done, file=stream, leave=False, bar_format=layout, dynamic_ncols=True
    )
