"""A run that was killed goes on where it was, to the same bytes; one of another kind is refused."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
from models.tiny import TEXT, write_tiny_checkpoint

from numbacalib.cli import main
from numbacalib.formats import durable
from numbacalib.quantizer import blocks, collection

SHORT = ["--samples", "4", "--sequence-length", "32", "--group-size", "32"]
LAYERS = 4


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT * 20, encoding="utf-8")
    return file


@pytest.fixture
def model(tmp_path):
    return write_tiny_checkpoint(tmp_path / "model", dtype="bfloat16", num_hidden_layers=LAYERS)


def run(*arguments):
    return main([str(argument) for argument in arguments])


def contents(directory):
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir())}


def fail_in_block(monkeypatch, index, error):
    """Let the first layer of a block fail."""
    real = blocks.quantize_group

    def failing(job, block, *arguments):
        if block.name == f"model.layers.{index}":
            raise error
        return real(job, block, *arguments)

    monkeypatch.setattr(blocks, "quantize_group", failing)


def interrupted_at(monkeypatch, index, *command):
    """Run until a block is reached, where Ctrl-C ends it."""
    with monkeypatch.context() as patch:
        fail_in_block(patch, index, KeyboardInterrupt())
        assert run(*command) == 130


def collected_blocks(monkeypatch):
    """Names of the blocks whose statistics are collected from now on."""
    names = []
    real = collection.run_stages

    def noting(block, *arguments):
        names.append(block.name)
        return real(block, *arguments)

    monkeypatch.setattr(collection, "run_stages", noting)
    return names


def quantized_layers(monkeypatch):
    """Names of the layers that are quantized from now on."""
    names = []
    real = blocks.quantize_group

    def noting(job, block, inputs, *arguments):
        names.extend(inputs)
        return real(job, block, inputs, *arguments)

    monkeypatch.setattr(blocks, "quantize_group", noting)
    return names


OPTIONS = {
    "gptq": [],
    "rtn": ["--method", "rtn"],
    "symmetric": ["--symmetric", "--bits", "3", "--ranges", "mse"],
    "scales": ["--channel-scales", "awq"],
    "everything": ["--channel-scales", "awq", "--target", "propagated", "--refit", "--bits", "3"],
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("index", [1, LAYERS - 1])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    tmp_path, monkeypatch, model, text, options, index
):
    command = ["quantize", model, "--text", text, *SHORT, *options]
    assert run(*command, "--output", tmp_path / "whole") == 0
    output = tmp_path / "out"
    interrupted_at(monkeypatch, index, *command, "--output", output)
    names = quantized_layers(monkeypatch)
    assert run(*command, "--output", output) == 0
    assert len(names) == 7 * (LAYERS - index)
    assert contents(output) == contents(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


def test_saved_statistics_go_on_too(tmp_path, monkeypatch, model, text):
    statistics = tmp_path / "statistics"
    assert run("collect", model, "--text", text, *SHORT[:4], "--output", statistics) == 0
    command = ["quantize", model, "--statistics", statistics, "--group-size", 32]
    command += ["--channel-scales", "awq"]
    assert run(*command, "--output", tmp_path / "whole") == 0
    interrupted_at(monkeypatch, 2, *command, "--output", tmp_path / "out")
    names = quantized_layers(monkeypatch)
    assert run(*command, "--output", tmp_path / "out") == 0
    assert len(names) == 14
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    file = next(statistics.glob("block*"))
    interrupted_at(monkeypatch, 2, *command, "--output", tmp_path / "again")
    os.utime(file, ns=(1, 1))
    assert run(*command, "--output", tmp_path / "again") == 2


@pytest.mark.parametrize("index", [1, LAYERS - 1, LAYERS])
def test_collecting_goes_on_too(tmp_path, monkeypatch, model, text, index):
    """At the last index all blocks are finished, and what is made of them fails."""
    command = ["collect", model, "--text", text, *SHORT[:4], "--output"]
    assert run(*command, tmp_path / "whole") == 0
    real = collection.run_stages

    def interrupt(block, *arguments):
        if block.name == f"model.layers.{index}":
            raise KeyboardInterrupt
        return real(block, *arguments)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(collection, "run_stages", interrupt)
        patch.setattr(collection, "write_imatrix", full)
        assert run(*command, tmp_path / "out") == (1 if index == LAYERS else 130)
    names = collected_blocks(monkeypatch)
    assert run(*command, tmp_path / "out") == 0
    assert len(names) == LAYERS - index
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


def test_collecting_from_another_text_is_refused(tmp_path, monkeypatch, model, text, capsys):
    command = ["collect", model, "--text", text, *SHORT[:4], "--output", tmp_path / "out"]
    real = durable.sync

    def interrupt(path):
        if path.name.startswith("block-0002"):
            raise KeyboardInterrupt
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "sync", interrupt)
        assert run(*command) == 130
    change_text(model, text)
    assert run(*command) == 2
    assert "text tokens was " in capsys.readouterr().err
    names = collected_blocks(monkeypatch)
    assert run(*command, "--clean") == 0
    assert len(names) == LAYERS


def test_the_report_has_the_layers_of_both_runs(tmp_path, monkeypatch, model, text):
    command = ["quantize", model, "--text", text, *SHORT, "--report", tmp_path / "report.json"]
    command += ["--output", tmp_path / "out"]
    interrupted_at(monkeypatch, 2, *command)
    assert run(*command) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["layers"]) == 7 * LAYERS
    assert report["resumed_blocks"] == 2


# What is kept, and where


def test_what_is_kept_is_named_and_removed_at_the_end(tmp_path, monkeypatch, model, text, caplog):
    work = tmp_path / "scratch" / "kept"
    command = ["quantize", model, "--text", text, *SHORT, "--output", tmp_path / "out"]
    command += ["--work", work]
    interrupted_at(monkeypatch, 2, *command)
    assert f"2 blocks are kept in {work}: the same command goes on from there" in caplog.text
    assert sorted(file.name for file in work.iterdir()) == [
        "block-0000.safetensors",
        "block-0001.safetensors",
        "run.json",
    ]
    assert not list(tmp_path.glob("*out*"))
    assert run(*command) == 0
    assert not work.exists()


def test_an_existing_directory_keeps_its_work_inside(tmp_path, monkeypatch, model, text):
    """It may be a mount point, beside which is another file system."""
    output = tmp_path / "out"
    output.mkdir()
    command = ["quantize", model, "--text", text, *SHORT, "--output", output]
    interrupted_at(monkeypatch, 2, *command)
    assert [entry.name for entry in output.iterdir()] == [".numbacalib.work"]
    names = quantized_layers(monkeypatch)
    assert run(*command) == 0
    assert len(names) == 7 * (LAYERS - 2)
    assert not list(output.glob(".*"))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A directory on another file system: a real one, or one that no file can be moved into or out of."""
    shared = Path("/dev/shm")
    if shared.is_dir() and shared.stat().st_dev != tmp_path.stat().st_dev:
        with tempfile.TemporaryDirectory(dir=shared) as directory:
            yield Path(directory)
        return
    directory = tmp_path / "elsewhere"
    directory.mkdir()

    def within(move):
        def moved(source, target, **options):
            ends = {Path(end).absolute().is_relative_to(directory) for end in (source, target)}
            if len(ends) > 1:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source))
            return move(source, target, **options)

        return moved

    for name in ("rename", "replace", "link"):
        monkeypatch.setattr(os, name, within(getattr(os, name)))
    yield directory


@pytest.mark.parametrize("what", ["output", "work"])
def test_output_and_work_may_be_on_other_file_systems(
    tmp_path, monkeypatch, model, text, elsewhere, what
):
    command = ["quantize", model, "--text", text, *SHORT]
    assert run(*command, "--output", tmp_path / "whole") == 0
    where = {"output": tmp_path / "out", "work": tmp_path / "work"} | {what: elsewhere / what}
    command += ["--output", where["output"], "--work", where["work"]]
    interrupted_at(monkeypatch, 2, *command)
    names = quantized_layers(monkeypatch)
    assert run(*command) == 0
    assert len(names) == 7 * (LAYERS - 2)
    assert contents(where["output"]) == contents(tmp_path / "whole")
    assert not where["work"].exists()


def test_work_of_others_is_refused(tmp_path, model, text, capsys):
    work = tmp_path / "full"
    work.mkdir()
    (work / "precious").write_text("kept")
    command = ["quantize", model, "--text", text, *SHORT, "--output", tmp_path / "out"]
    assert run(*command, "--work", work) == 2
    assert "expected an empty directory or what a killed run left" in capsys.readouterr().err
    assert run(*command, "--work", work, "--clean") == 2
    assert contents(work) == {"precious": b"kept"}


def test_two_runs_do_not_share_work(tmp_path, model, text, capsys, monkeypatch):
    command = ["quantize", model, "--text", text, *SHORT, "--work", tmp_path / "work"]
    real, status = blocks.quantize_group, []

    def second(*arguments):
        if not status:
            status.append(None)
            status[0] = run(*command, "--output", tmp_path / "second")
        return real(*arguments)

    monkeypatch.setattr(blocks, "quantize_group", second)
    assert run(*command, "--output", tmp_path / "first") == 0
    assert status == [2]
    assert f"{tmp_path / 'work'}: another run is writing to it" in capsys.readouterr().err


def test_what_fails_every_time_keeps_nothing(tmp_path, monkeypatch, model, text):
    command = ["quantize", model, "--text", text, *SHORT, "--output", tmp_path / "out"]
    with monkeypatch.context() as patch:
        fail_in_block(patch, 2, np.linalg.LinAlgError("not positive definite"))
        assert run(*command) == 1
    assert not list(tmp_path.glob("*out*"))


# What differs


def change_text(model, text):
    text.write_text(TEXT[::-1] * 20, encoding="utf-8")


def change_weights(model, text):
    write_tiny_checkpoint(model, dtype="bfloat16", num_hidden_layers=LAYERS, seed=1)


def change_config(model, text):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-4}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--bits", "3"], "settings bits was 4, is 3"),
        (["--percdamp", "0.02"], "settings percdamp was 0.01, is 0.02"),
        (["--samples", "5"], "settings samples was 4, is 5"),
        (change_text, "text tokens was "),
        (change_weights, "model model.safetensors was ["),
        (change_config, "model config.json was ["),
    ],
)
def test_a_run_of_another_kind_is_refused(
    tmp_path, monkeypatch, model, text, capsys, change, message
):
    command = ["quantize", model, "--text", text, *SHORT, "--output", tmp_path / "out"]
    interrupted_at(monkeypatch, 2, *command)
    if callable(change):
        change(model, text)
    else:
        command += change
    capsys.readouterr()
    before = contents(tmp_path / ".out.work")
    assert run(*command) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert message in line
    assert "--clean to begin anew" in line
    assert contents(tmp_path / ".out.work") == before
    names = quantized_layers(monkeypatch)
    assert run(*command, "--clean") == 0
    assert len(names) == 7 * LAYERS
    assert not list(tmp_path.glob(".*"))


def test_another_version_is_refused(tmp_path, monkeypatch, model, text, capsys):
    import numbacalib

    command = ["quantize", model, "--text", text, *SHORT, "--output", tmp_path / "out"]
    interrupted_at(monkeypatch, 2, *command)
    monkeypatch.setattr(numbacalib, "__version__", "99")
    assert run(*command) == 2
    assert "version numbacalib was 0.1.0, is 99" in capsys.readouterr().err


def test_a_model_that_changes_meanwhile_ends_the_run(tmp_path, monkeypatch, model, text, capsys):
    real = blocks.quantize_group

    def changing(job, block, *arguments):
        if block.name == "model.layers.2":
            os.utime(model / "model.safetensors", ns=(1, 1))
        return real(job, block, *arguments)

    monkeypatch.setattr(blocks, "quantize_group", changing)
    command = ["quantize", model, "--text", text, *SHORT, "--output", tmp_path / "out"]
    assert run(*command) == 2
    assert "model.safetensors: the file has changed" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


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
