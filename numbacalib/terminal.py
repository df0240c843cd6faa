"""Terminal of a run: standard streams that may be closed, and signals that end it."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from types import FrameType
from typing import TextIO


class RejectedError(Exception):
    """A result that failed its check: it is kept for inspection, and the exit status is 1."""


Callback = Callable[[str, int, int], object]
"""Called with a description of the current work, the steps done and the total steps."""

_callback: ContextVar[Callback | None] = ContextVar("callback", default=None)


def callback() -> Callback | None:
    """Function that receives progress; None for standard error."""
    return _callback.get()


@contextmanager
def reporting(to: Callback | None) -> Iterator[None]:
    """Report progress inside the ``with`` statement to a callable, instead of standard error.

    None changes nothing.
    """
    token = _callback.set(to or _callback.get())
    try:
        yield
    finally:
        _callback.reset(token)


def silent(what: str, done: int, total: int) -> None:
    """Discard progress: an argument of `reporting`."""
    del what, done, total


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, the signal of `kill` and service managers, and a closed terminal."""


class GuardedStream(io.TextIOBase):
    """A text stream that never raises: text that cannot be written is dropped.

    A pipe whose reader has gone, a full disk or a closed terminal must not end hours of work.

    Parameters
    ----------
    stream : text stream or None
        None stands for a standard stream that was closed before Python started.

    Attributes
    ----------
    lost : str or None
        Reason why text was dropped, if any was.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.lost: str | None = None

    def write(self, text: str) -> int:
        """Write or drop text; characters that the stream's encoding lacks are written as escapes."""
        try:
            self._do(lambda stream: stream.write(text))
        except UnicodeEncodeError as error:
            plain = text.encode(error.encoding, "backslashreplace").decode(error.encoding)
            self._do(lambda stream: stream.write(plain))
        return len(text)

    def flush(self) -> None:
        """Flush, or note that the text is lost."""
        self._do(lambda stream: stream.flush())

    def isatty(self) -> bool:
        """Return whether the stream is a terminal that is still open."""
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        """The stream's descriptor, as for any stream."""
        return io.TextIOBase.fileno(self) if self._stream is None else self._stream.fileno()

    def _do(self, action: Callable[[TextIO], object]) -> None:
        if self._stream is None or self._stream.closed:
            self.lost = "it is closed"
        elif self.lost is None:
            try:
                action(self._stream)
            except OSError as error:
                self.lost = error.strerror or str(error)


@contextmanager
def guarded_streams() -> Iterator[GuardedStream]:
    """Guard standard output, which is yielded, and standard error inside the ``with`` statement."""
    _occupy_descriptors()
    output, errors = GuardedStream(sys.stdout), GuardedStream(sys.stderr)
    try:
        with redirect_stdout(output), redirect_stderr(errors):
            yield output
    finally:
        for guard in (output, errors):
            guard.flush()
            if guard.lost:
                _silence(guard)


def _occupy_descriptors() -> None:
    """Open those of descriptors 0 to 2 that are closed, so that no output file gets their numbers.

    Libraries print warnings to these, which would corrupt the file.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _silence(stream: GuardedStream) -> None:
    """Redirect a lost stream to nowhere, or Python fails again when it flushes the stream at exit."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # it has no descriptor
        return
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, number)
    os.close(descriptor)


class Ended(KeyboardInterrupt):
    """A signal that ends the run after cleaning up, as Ctrl-C does.

    Attributes
    ----------
    status : int
        Exit status as in shells, 128 plus the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.status = 128 + number


@contextmanager
def ending_signals() -> Iterator[Callable[[], None]]:
    """Raise `Ended` inside the ``with`` statement at any of `SIGNALS`.

    Signals that are ignored, as under ``nohup``, stay ignored, and a caller's own handlers stay in place.
    Outside the main thread, where Python allows no handlers, nothing is installed.

    Yields
    ------
    callable
        Call it to ignore these signals for the rest of the statement.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        raise Ended(number)

    mine = []
    if threading.current_thread() is threading.main_thread():
        mine = [number for number in SIGNALS if signal.getsignal(number) in _DEFAULTS]
    before = {number: signal.signal(number, end) for number in mine}

    def ignore() -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)

    try:
        yield ignore
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)
