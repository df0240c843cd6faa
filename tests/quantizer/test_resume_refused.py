"""What a run does not go on from: another kind of run, a changed model, work that others have."""

from __future__ import annotations

import json
import os

import pytest
from models.tiny import TEXT, write_tiny_checkpoint
from quantizer.interrupted import LAYERS, SHORT, collected_blocks, interrupted_at, quantized_layers
from quantizer.runs import contents, run

from numbacalib.formats import durable
from numbacalib.quantizer import blocks


@pytest.fixture
def model(tmp_path):
    return write_tiny_checkpoint(tmp_path / "model", dtype="bfloat16", num_hidden_layers=LAYERS)


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


def change_text(model, text):
    text.write_text(TEXT[::-1] * 20, encoding="utf-8")


def change_weights(model, text):
    write_tiny_checkpoint(model, dtype="bfloat16", num_hidden_layers=LAYERS, seed=1)


def change_config(model, text):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-4}))


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
    assert "--clean to start over" in line
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
