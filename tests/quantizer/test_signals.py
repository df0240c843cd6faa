"""Runs that signals, a closed terminal or lost streams end, or do not."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
from models.tiny import write_tiny_checkpoint
from quantizer.runs import assert_one_line, assert_whole, run

RTN = ["--method", "rtn", "--group-size", "32"]


@pytest.fixture
def model(tmp_path):
    return write_tiny_checkpoint(tmp_path / "model")


WAIT_IN_A_LAYER = """
    import os, shutil, signal, sys, time
    from numbacalib.cli import main
    from numbacalib.quantizer import blocks

    def wait(*_):
        print("inside", file=sys.stderr, flush=True)
        time.sleep(60)

    def interrupted_removal(path, **options):
        os.kill(os.getpid(), signal.SIGINT)

    again, *arguments = sys.argv[1:]
    blocks.quantize_group = wait
    if again == "again":
        shutil.rmtree = interrupted_removal
    sys.exit(main(arguments))
"""


def interrupted(number, again, arguments, before=None):
    """Run until a layer is reached and send a signal; the status and what came on standard error."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WAIT_IN_A_LAYER), again, *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )
    with process:
        while (line := process.stderr.readline()) and "inside" not in line:
            pass
        process.send_signal(number)
        error = process.stderr.read()
    return process.returncode, error


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_end_a_run_cleanly(tmp_path, model, number, status):
    arguments = ["quantize", model, *RTN, "--output", tmp_path / "out"]
    found, error = interrupted(number, "once", arguments)
    assert found == status
    assert_one_line(error, f"interrupted by {number.name}")
    assert not list(tmp_path.glob("*out*"))


WITH_A_TERMINAL = """
    import fcntl, os, signal, sys, termios, time
    from numbacalib.cli import main
    from numbacalib.quantizer import blocks

    fcntl.ioctl(2, termios.TIOCSCTTY, 0)  # standard error is the terminal that controls this process
    real = blocks.quantize_group

    def after_a_while(*arguments):
        print("inside", file=sys.stderr, flush=True)
        time.sleep(seconds)
        return real(*arguments)

    seconds = float(sys.argv[1])
    if sys.argv[2] == "nohup":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    blocks.quantize_group = after_a_while
    sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.parametrize(("seconds", "how"), [(60, "plain"), (0.05, "nohup")])
def test_a_terminal_that_is_closed_ends_a_run_unless_it_was_told_not_to(
    tmp_path, model, seconds, how
):
    output = tmp_path / "out"
    ours, theirs = os.openpty()
    arguments = [seconds, how, "quantize", model, *RTN, "--output", output]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WITH_A_TERMINAL), *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    seen = b""
    while b"inside" not in seen:
        seen += os.read(ours, 1000)
    os.close(ours)
    if how == "nohup":
        assert process.wait(timeout=60) == 0
        assert_whole(output)
    else:
        assert process.wait(timeout=60) == 129
        assert not list(tmp_path.glob("*out*"))


def test_a_second_interrupt_while_cleaning_up_leaves_no_output(tmp_path, model):
    arguments = ["quantize", model, *RTN, "--output", tmp_path / "out"]
    found, error = interrupted(signal.SIGTERM, "again", arguments)
    assert found == 130
    assert_one_line(error, "interrupted by SIGINT")
    assert not (tmp_path / "out").exists()
    (left,) = tmp_path.glob(".out*")
    assert run("quantize", model, *RTN, "--output", tmp_path / "out", "--clean") == 0
    assert not left.exists()
    assert_whole(tmp_path / "out")


def test_signals_that_are_ignored_stay_ignored():
    """As ``nohup`` has it of SIGHUP."""
    from numbacalib.terminal import ending_signals

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def shell(redirections, *arguments):
    """Run the command line with redirections of the shell's; its status."""
    command = [sys.executable, "-m", "numbacalib.cli", *map(str, arguments)]
    script = f'exec "$@" {redirections}'
    return subprocess.run(["sh", "-c", script, "sh", *command], check=False, timeout=120).returncode


def open_broken_pipe():
    read, written = os.pipe()
    os.close(read)
    return written


@pytest.mark.parametrize("redirections", [">&- 2>&-", ">/dev/full 2>/dev/full", "broken pipe"])
def test_lost_streams_end_no_run(tmp_path, model, redirections):
    output = tmp_path / "out"
    arguments = ["quantize", model, *RTN, "--output", output]
    if redirections == "broken pipe":
        pipe = open_broken_pipe()
        command = [sys.executable, "-m", "numbacalib.cli", *map(str, arguments)]
        status = subprocess.run(command, stdout=pipe, stderr=pipe, check=False).returncode
        os.close(pipe)
    else:
        status = shell(redirections, *arguments)
    assert status == 0
    assert_whole(output)
    assert run("quantize", model, *RTN, "--output", tmp_path / "again") == 0
    for file in output.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


@pytest.mark.parametrize("redirections", [">&-", ">/dev/full"])
def test_a_result_that_cannot_be_printed_is_a_failure(model, text, redirections):
    arguments = ["evaluate", model, "--text", text, "--sequence-length", "32", "--samples", "2"]
    assert shell(f"{redirections} 2>/dev/null", *arguments) == 1


def test_a_name_that_the_terminal_cannot_show_is_escaped(tmp_path, model, monkeypatch):
    with (tmp_path / "ascii.txt").open("w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert run("quantize", model, *RTN, "--output", tmp_path / "größer") == 0
    assert "gr\\xf6\\xdfer" in (tmp_path / "ascii.txt").read_text(encoding="ascii")


def test_a_crash_of_native_code_shows_where_it_was_called(tmp_path, model):
    """On standard error, even where the process cannot say anything any more."""
    crashing = """
        import faulthandler, sys
        from numbacalib.cli import main
        from numbacalib.quantizer import blocks

        def crash(*_):
            faulthandler._sigsegv()

        blocks.quantize_group = crash
        main(sys.argv[1:])
    """
    command = [sys.executable, "-c", textwrap.dedent(crashing), "quantize", model, *RTN]
    command += ["--output", tmp_path / "out"]
    ended = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGSEGV
    assert "in crash" in ended.stderr
    assert "in quantize_blocks" in ended.stderr
