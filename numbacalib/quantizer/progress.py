"""Progress of long work: the current activity, its rate and the time left.

Shown on standard error unless `numbacalib.terminal.reporting` says otherwise: on a terminal as a bar of
tqdm, elsewhere (a log file, a pipe) as one line for each named step.
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
        Standard error by default. If it is closed, full or gone, only the bar is lost, not the work.
    done : int, default 0
        Steps done before, which do not count in the time estimate.
    unit : str, default "step"
        Name of a step.
    planned : sequence of float, optional
        Expected seconds of each remaining step; equal by default.
    later : float, default 0
        Expected seconds after the last step.
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
        """Show the current activity; silent without a terminal or a callback."""
        self._what = what
        if self._callback is not None:
            self._callback(what, self._done, self._steps)
        elif self._bar is not None:
            self._bar.set_postfix_str(what)

    def step(self, what: str = "") -> None:
        """Count one step as done; `what`, if given, names it and gets a line in a log file."""
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
    """Estimate of the seconds left, from the planned steps and the time of those done.

    Parameters
    ----------
    planned : sequence of float
        Expected seconds of each step; all 0 for equal steps of unknown time.
    later : float
        Expected seconds after the last step.
    clock : callable
        Returns the time in seconds.
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
        """Return the seconds left; None if not known yet."""
        done, left = sum(self._planned[: self._done]), sum(self._planned[self._done :])
        if not done and not self._known:
            return None
        pace = (self._last - self._start) / done if done else 1.0
        return max(0.0, pace * (left + self._later) - (self._clock() - self._last))


def _bar(steps: int, done: int, unit: str, stream: GuardedStream, left: TimeLeft) -> Any:
    """Return a bar that disappears when it is closed."""
    with extra("models"):
        from tqdm import tqdm

    class Bar(tqdm):
        """Bar with the time left as planned."""

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
