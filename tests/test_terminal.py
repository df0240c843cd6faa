"""Standard streams that are closed, full or gone, and the bar that is drawn on them."""

import errno
import io
import signal
import sys
import threading

import pytest

from numbacalib.quantizer.progress import Progress, TimeLeft
from numbacalib.terminal import Ended, GuardedStream, ending_signals, guarded_streams


class Terminal(io.StringIO):
    """A terminal that is closed after some writes: what a lost one says is EIO."""

    def __init__(self, writes):
        super().__init__()
        self.writes = writes

    def isatty(self):
        return True

    def write(self, text):
        if self.writes == 0:
            raise OSError(errno.EIO, "Input/output error")
        self.writes -= 1
        return super().write(text)


@pytest.mark.parametrize("writes", range(5))
def test_a_terminal_that_is_lost_loses_the_bar_and_not_the_work(writes):
    terminal = Terminal(writes)
    done = []
    with Progress(3, terminal) as progress:
        for index in range(3):
            progress.show(f"step {index}")
            done.append(index)
            progress.step()
    assert done == [0, 1, 2]
    assert terminal.getvalue().count("\r") <= writes


def test_the_time_left_is_planned_and_then_measured():
    now = [100.0]
    left = TimeLeft([1.0, 1.0, 4.0], later=2.0, clock=lambda: now[0])
    assert left() == 8
    now[0] += 0.5
    assert left() == 7.5
    now[0] += 2.5
    left.step()  # 3 s instead of 1
    assert left() == 3 * 7
    now[0] += 1
    left.step()  # 4 s instead of 2
    assert left() == 2 * 6
    now[0] += 20
    assert left() == 0


def test_the_time_left_of_steps_that_are_alike():
    now = [0.0]
    left = TimeLeft([0.0] * 4, clock=lambda: now[0])
    assert left() is None
    now[0] += 5
    left.step()
    assert left() == 15
    assert TimeLeft([])() is None


def test_a_bar_has_what_is_done_the_rate_and_the_time_left():
    terminal = Terminal(-1)
    with Progress(3, terminal, unit="block", planned=[60.0] * 3, later=30.0) as progress:
        progress.show("block 1 of 3: reading")
        progress.step()
    drawn = terminal.getvalue()
    assert "block 1 of 3: reading" in drawn
    assert "03:30 left" in drawn or "03:29 left" in drawn
    assert "block" in drawn.partition("left, ")[2].partition("]")[0]


def test_a_stream_that_was_closed_loses_the_bar_and_not_the_work(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with Progress(1) as progress:
        progress.show("step")
        progress.step("step")
    stream = io.StringIO()
    stream.close()
    with Progress(1, stream) as progress:
        progress.step("step")


def test_why_text_did_not_get_through():
    assert GuardedStream(io.StringIO()).lost is None
    closed, gone = GuardedStream(None), GuardedStream(Terminal(0))
    for guard in (closed, gone):
        assert guard.write("text") == 4
        guard.flush()
    assert (closed.lost, gone.lost) == ("it is closed", "Input/output error")


def test_standard_streams_are_guarded_and_given_back(capsys):
    before = sys.stdout, sys.stderr
    with guarded_streams() as output:
        assert sys.stdout is output
        print("out")
        print("err", file=sys.stderr)
    assert (sys.stdout, sys.stderr) == before
    assert tuple(capsys.readouterr()) == ("out\n", "err\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_raise_until_they_are_ignored_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with ending_signals() as ignore:
        with pytest.raises(Ended, match=number.name) as raised:
            signal.raise_signal(number)
        assert raised.value.status == 128 + number
        ignore()
        signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_handlers_of_others_stay():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("theirs"))
    try:
        with ending_signals():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == ["theirs"]


def test_in_other_threads_nothing_is_installed():
    """Only the main thread may."""
    seen = []

    def main():
        with ending_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
