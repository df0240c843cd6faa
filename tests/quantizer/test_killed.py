"""What is left where a disk fills or a process is killed at any moment: all finished blocks."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from models.tiny import write_tiny_checkpoint
from quantizer.interrupted import LAYERS, SHORT
from quantizer.runs import contents, run

from numbacalib.cli import main
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

FORKS = multiprocessing.get_context("forkserver")
"""Processes that begin with everything imported, which takes longer than a run here."""
FORKS.set_forkserver_preload(
    ["numbacalib.cli", "numbacalib.models.huggingface", "numbacalib.quantizer", "tokenizers"]
)


def run_to_be_killed(seconds, arguments, errors, told):
    """Run the command in this process, which kills itself after so many seconds if it is not done."""
    with errors.open("w") as sys.stderr:
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        begin = time.monotonic()
        status = main(list(map(str, arguments)))
        told.send(time.monotonic() - begin)
        sys.stderr.flush()
        os._exit(status)  # without waiting for the timer


def killed_after(seconds, errors, *arguments):
    """Return the status of a run that is killed after so many seconds, and its time if it was not."""
    heard, told = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=run_to_be_killed, args=(seconds, arguments, errors, told))
    process.start()
    told.close()
    process.join()
    return process.exitcode, heard.recv() if heard.poll() and process.exitcode == 0 else None


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
    errors = tmp_path / "errors"
    for output in ("compiling", "whole"):  # the time is of a run whose kernels are there
        status, seconds = killed_after(600, errors, *command, tmp_path / output)
        assert status == 0, errors.read_text()
    whole = contents(tmp_path / "whole")
    moments, done, resumed = random.Random(0), 0, 0
    for number in range(20 * kills):  # a run may end before it is killed
        output = tmp_path / f"out-{number}"
        while not output.exists():
            resumed += bool(list(tmp_path.glob(f".{output.name}.work/block-*")))
            enough = done >= kills and resumed
            after = 600 if enough else moments.uniform(0, seconds)
            status, _ = killed_after(after, errors, *command, output)
            assert status in (0, -signal.SIGKILL), errors.read_text()
            done += status != 0
        assert contents(output) == whole
        if done >= kills and resumed:
            break
    assert done >= kills
    assert resumed
