"""What is left where a disk fills or a process is killed at any moment: all finished blocks."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from models.tiny import write_tiny_checkpoint
from quantizer.interrupted import LAYERS, SHORT
from quantizer.runs import contents, run

from numbacalib.formats import durable


@pytest.fixture
def model(tmp_path):
    return write_tiny_checkpoint(tmp_path / "model", dtype="bfloat16", num_hidden_layers=LAYERS)


# Disks that fill


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("nth", [2, 3, LAYERS + 1])
def test_a_disk_that_fills_loses_no_finished_block(
    tmp_path, monkeypatch, model, text, capsys, kind, nth
):
    """The first file is the identity, then come blocks; `nth` counts from it."""
    command = ["quantize", model, "--text", text, *SHORT]
    assert run(*command, "--output", tmp_path / "whole") == 0
    real, count = durable.sync, []

    def full(path):
        count.append(path)
        if len([each for each in count if each.name.endswith(".partial")]) == nth:
            raise OSError(kind, os.strerror(kind), str(path))
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "sync", full)
        assert run(*command, "--output", tmp_path / "out") == 1
    assert os.strerror(kind) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.glob(".out.work/block-*"))) == nth - 2
    assert not list(tmp_path.glob(".out.work/*.partial"))
    assert run(*command, "--output", tmp_path / "out") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_files_are_synced_before_they_are_renamed(tmp_path, monkeypatch):
    """What a power cut leaves: a name only where the contents are on the disk."""
    seen = []
    monkeypatch.setattr(durable, "sync", lambda path: seen.append(("sync", path.name)))
    real = os.replace

    def replace(source, target):
        seen.append(("rename", Path(target).name))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    durable.write_whole(tmp_path / "file", lambda path: path.write_text("whole"))
    assert seen == [("sync", "file.partial"), ("rename", "file"), ("sync", tmp_path.name)]


# SIGKILL at any moment

KILLED = """
    import os, signal, sys, threading, time
    import numbacalib.models.huggingface, numbacalib.quantizer, tokenizers
    from numbacalib.cli import main

    seconds, *arguments = sys.argv[1:]
    threading.Timer(float(seconds), os.kill, (os.getpid(), signal.SIGKILL)).start()
    begin = time.monotonic()
    status = main(arguments)
    print(time.monotonic() - begin, flush=True)
    os._exit(status)  # without waiting for the timer
"""


def killed_after(seconds, *arguments):
    """Run in a process that is killed so many seconds after all is imported, if it is not done."""
    command = [sys.executable, "-c", textwrap.dedent(KILLED), seconds, *arguments]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


COMMANDS = {
    "quantize": [*SHORT, "--channel-scales", "awq", "--target", "propagated"],
    "collect": SHORT[:4],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_killed_at_random_points_goes_on_to_the_same_bytes(
    tmp_path, model, text, pytestconfig, name
):
    """Again and again until a run comes to its end; `--kills` says how many kills in all."""
    kills = pytestconfig.getoption("--kills")
    command = [name, model, "--text", text, *COMMANDS[name], "--output"]
    undisturbed = killed_after(60, *command, tmp_path / "whole")
    assert undisturbed.returncode == 0, undisturbed.stderr
    seconds, whole = float(undisturbed.stdout.split()[-1]), contents(tmp_path / "whole")
    moments, done, resumed = random.Random(0), 0, 0
    for number in range(20 * kills):  # a run may end before it is killed
        output = tmp_path / f"out-{number}"
        while not output.exists():
            resumed += bool(list(tmp_path.glob(f".{output.name}.work/block-*")))
            enough = done >= kills and resumed
            ended = killed_after(600 if enough else moments.uniform(0, seconds), *command, output)
            assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
            done += ended.returncode != 0
        assert contents(output) == whole
        if done >= kills and resumed:
            break
    assert done >= kills
    assert resumed
