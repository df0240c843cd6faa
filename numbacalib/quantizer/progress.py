"""Progress of long work: what is being done, how fast it goes, how long it will take.

Shown on standard error unless `numbacalib.terminal.reporting` says otherwise: on a terminal as a bar of
tqdm, elsewhere (a log file, a pipe) as one line for each step that is worth one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TextIO

from numbacalib.runtime.extras import extra
from numbacalib.terminal import GuardedStream, callback


class Progress:
    """Progress over a known number of steps.

    A context manager, so that the terminal's line is always ended.

    Parameters
    ----------
    steps : int
        Steps in all.
    stream : text stream, optional
        Standard error by default. One that is closed, full or gone loses the bar, not the work.
    done : int, default 0
        Steps that were done before and say nothing of the time that the others take.
    unit : str, default "step"
        Name of a step.
    planned : sequence of float, optional
        Seconds that each of the other steps should take; equal ones by default.
    later : float, default 0
        Seconds that should follow the last step.
    """

    def __init__(
        self,
        steps: int,
        stream: TextIO | None = None,
        done: int = 0,
        *,
        unit: str = "step",
        planned: Sequence[float] = (),
        later: float = 0.0,
    ) -> None:
        self._steps, self._done = steps, done
        self._what = ""
        self._callback = callback()
        self._stream = GuardedStream(stream or sys.stderr)
        self._left = TimeLeft(planned or [0.0] * (steps - done), later)
        self._bar: Any = None
        if self._callback is None and self._stream.isatty():
            self._bar = _bar(steps, done, unit, self._stream, self._left)

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
        self._left.step()
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


class TimeLeft:
    """Seconds that are left of planned steps, by how long those took that are done.

    Parameters
    ----------
    planned : sequence of float
        Seconds that each step should take; all 0 where nothing is known but that they are alike.
    later : float
        Seconds that should follow.
    clock : callable
        What returns the time in seconds.
    """

    def __init__(
        self,
        planned: Sequence[float],
        later: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._known = any(planned)
        self._planned = list(planned) if self._known else [1.0] * len(planned)
        self._later = later
        self._clock = clock
        self._done = 0
        self._start = self._last = clock()

    def step(self) -> None:
        """Count one step as done."""
        self._done += 1
        self._last = self._clock()

    def __call__(self) -> float | None:
        """Return the seconds left; None where they are not known yet."""
        done, left = sum(self._planned[: self._done]), sum(self._planned[self._done :])
        if not done and not self._known:
            return None
        pace = (self._last - self._start) / done if done else 1.0
        return max(0.0, pace * (left + self._later) - (self._clock() - self._last))


def _bar(steps: int, done: int, unit: str, stream: GuardedStream, left: TimeLeft) -> Any:
    """A bar that goes when it is closed."""
    with extra("models"):
        from tqdm import tqdm

    class Bar(tqdm):
        """A bar with our time left."""

        @property
        def format_dict(self) -> dict[str, Any]:
            seconds = left()
            text = "?" if seconds is None else tqdm.format_interval(seconds)
            return {**super().format_dict, "left": text}

    layout = (
        "{percentage:3.0f} %|{bar:24}| {n_fmt}/{total_fmt} [{elapsed}, {left} left, {rate_fmt}]"
        "{postfix}"
    )
    return Bar(
        total=steps,
        initial=done,
        unit=unit,
        file=stream,
        leave=False,
        bar_format=layout,
        dynamic_ncols=True,
    )
