"""A run that was killed goes on where it was, to the same bytes, wherever its work is kept."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from models.tiny import write_tiny_checkpoint
from quantizer.interrupted import (
    LAYERS,
    SHORT,
    collected_blocks,
    fail_in_block,
    interrupted_at,
    quantized_layers,
)
from quantizer.runs import contents, run

from numbacalib.quantizer import collection


@pytest.fixture
def model(tmp_path):
    return write_tiny_checkpoint(tmp_path / "model", dtype="bfloat16", num_hidden_layers=LAYERS)


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


def test_the_report_has_the_layers_of_both_runs(tmp_path, monkeypatch, model, text):
    command = ["quantize", model, "--text", text, *SHORT, "--report", tmp_path / "report.json"]
    command += ["--output", tmp_path / "out"]
    interrupted_at(monkeypatch, 2, *command)
    assert run(*command) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["layers"]) == 7 * LAYERS
    assert report["resumed_blocks"] == 2


def test_what_is_kept_is_named_and_removed_at_the_end(tmp_path, monkeypatch, model, text, caplog):
    work = tmp_path / "scratch" / "kept"
    command = ["quantize", model, "--text", text, *SHORT, "--output", tmp_path / "out"]
    command += ["--work", work]
    interrupted_at(monkeypatch, 2, *command)
    assert f"2 blocks are kept in {work}: the same command resumes from them" in caplog.text
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


def test_what_fails_every_time_keeps_nothing(tmp_path, monkeypatch, model, text):
    command = ["quantize", model, "--text", text, *SHORT, "--output", tmp_path / "out"]
    with monkeypatch.context() as patch:
        fail_in_block(patch, 2, np.linalg.LinAlgError("not positive definite"))
        assert run(*command) == 1
    assert not list(tmp_path.glob("*out*"))
