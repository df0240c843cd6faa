"""Options of a run: patterns of layers, settings files, hub ids, what is printed, the call from Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from quantizer.runs import run

import numbacalib
from numbacalib.formats.registry import stored_format
from numbacalib.models import HOST, open_checkpoint, place
from numbacalib.models.hub import revision_of

SHORT = ["--samples", "4", "--sequence-length", "32", "--group-size", "32"]


def bits_of(output):
    checkpoint = open_checkpoint(output)
    return {
        name: layer.bits for name, layer in stored_format(checkpoint).layers(checkpoint).items()
    }


# Layers by name


def test_layers_are_skipped_and_have_bits_of_their_own(tmp_path, model, text):
    output = tmp_path / "out"
    command = ["quantize", model, "--text", text, *SHORT, "--symmetric", "--output", output]
    command += ["--skip", "model.layers.0.*", "*.k_proj", "--bits", 3, "*.down_proj=8", "*mlp*=5"]
    assert run(*command) == 0
    bits = bits_of(output)
    block = "model.layers.1"
    assert bits == {
        **{f"{block}.self_attn.{name}_proj": 3 for name in "qvo"},
        **{f"{block}.mlp.{name}_proj": 5 for name in ("gate", "up", "down")},
    }
    before, after = open_checkpoint(model), open_checkpoint(output)
    name = "model.layers.0.mlp.up_proj.weight"
    assert (before.tensor(name) == after.tensor(name)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--skip", "*.x_proj"],
            "skip: expected patterns of layers such as model.layers.0.self_attn",
        ),
        (["--bits", "*.x_proj=3"], "none fits '*.x_proj'"),
        (["--bits", "four"], "bits: expected a number or PATTERN=NUMBER, got 'four'"),
        (["--bits", "*.q_proj=9"], "bits of *.q_proj: expected 2 to 8, got 9"),
        (["--skip", "*"], "skip: expected patterns that leave a layer to quantize"),
    ],
)
def test_patterns_that_fit_nothing_are_refused(tmp_path, model, capsys, options, message):
    command = ["quantize", model, "--method", "rtn", "--group-size", 32, *options]
    assert run(*command, "--output", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


def test_channel_scales_leave_skipped_layers_as_they_are(tmp_path, model, text):
    """Neither the layers of a stage that is scaled, nor what takes up the scales."""
    command = ["quantize", model, "--text", text, *SHORT, "--channel-scales", "awq"]
    output = tmp_path / "out"
    assert run(*command, "--skip", "*.0.mlp.up_proj", "*.k_proj", "--output", output) == 0
    before, after = open_checkpoint(model), open_checkpoint(output)
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.k_proj.weight"):
        assert (before.tensor(name) == after.tensor(name)).all()
    norm = "model.layers.1.post_attention_layernorm.weight"
    assert (before.tensor(norm) != after.tensor(norm)).any()


def test_awq_is_scales_clipping_and_rounding(tmp_path, model, text):
    command = ["quantize", model, "--text", text, *SHORT]
    assert run(*command, "--method", "awq", "--output", tmp_path / "short") == 0
    spelled = ["--method", "rtn", "--channel-scales", "awq", "--ranges", "clip"]
    assert run(*command, *spelled, "--output", tmp_path / "spelled") == 0
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("short", "spelled")]
    assert files[0] == files[1]


# Settings files


def test_a_report_writes_settings_that_a_later_run_takes(tmp_path, model, text):
    report = tmp_path / "run.json"
    command = ["quantize", model, "--text", text, *SHORT, "--bits", "3", "*.o_proj=4"]
    command += ["--symmetric", "--no-static-groups", "--act-order", "none", "--shrinkage", "auto"]
    assert run(*command, "--output", tmp_path / "first", "--report", report) == 0
    config = tmp_path / "run.toml"
    assert run("quantize", "--config", config, "--output", tmp_path / "second") == 0
    outputs = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert outputs[0] == outputs[1]
    third = ["quantize", model, "--config", config, "--bits", 5, "--output", tmp_path / "third"]
    assert run(*third) == 0
    assert set(bits_of(tmp_path / "third").values()) == {5}
    assert json.loads(report.read_text())["settings"]["layer_bits"] == {"*.o_proj": 4}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("bits = ", "run.toml: expected a settings file in TOML"),
        ("[bits]\nx = 3\n", "run.toml: bits: expected text, a number"),
    ],
)
def test_settings_files_that_are_none(tmp_path, model, capsys, content, message):
    (tmp_path / "run.toml").write_text(content)
    command = ["quantize", model, "--config", tmp_path / "run.toml", "--output", tmp_path / "out"]
    assert run(*command) == 2
    assert message in capsys.readouterr().err


def test_unknown_settings_of_a_file_are_refused(tmp_path, model, capsys):
    (tmp_path / "run.toml").write_text("bitz = 3\n")
    with pytest.raises(SystemExit) as ended:
        run("quantize", model, "--config", tmp_path / "run.toml", "--output", tmp_path / "out")
    assert ended.value.code == 2
    assert "--bitz=3" in capsys.readouterr().err


# The hub


def test_a_hub_id_is_fetched_where_there_is_no_such_path(tmp_path, model, monkeypatch):
    import huggingface_hub

    cache = tmp_path / "snapshots" / "0123abc"
    cache.parent.mkdir()
    model.rename(cache)
    asked = []

    def snapshot_download(name, revision, allow_patterns):
        asked.append((name, revision))
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    report = numbacalib.quantize("owner/name@main", "out", method="rtn", group_size=32)
    assert asked[0] == ("owner/name", "main")
    assert (report.model, report.revision) == ("owner/name@main", "0123abc")
    assert revision_of(tmp_path) is None
    # a path that exists wins
    (tmp_path / "owner").mkdir()
    cache.rename(tmp_path / "owner" / "name")
    asked.clear()
    open_checkpoint("owner/name")
    assert not asked


def test_a_hub_that_is_not_to_be_had_is_one_line(tmp_path, monkeypatch, capsys):
    import huggingface_hub

    def snapshot_download(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network\nand more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    assert run("quantize", "owner/name", "--method", "rtn", "--output", "out") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "numbacalib: error: owner/name: no such file or directory, and not available on the Hugging "
        "Face hub: no network"
    )


# What is printed


def test_a_summary_is_printed_instead_of_every_layer(tmp_path, model, text, capsys):
    assert run("quantize", model, "--text", text, *SHORT, "--output", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "bits a weight in 14 layers; " in printed
    assert " MB before, " in printed
    assert printed.count("model.layers.") == 5
    assert "held-out text: perplexity" in printed
    assert printed.splitlines()[-1] == f"written to {tmp_path / 'out'}"
    assert max(map(len, printed.splitlines()[:-1])) <= 100


def test_quiet_runs_print_nothing(tmp_path, model, text, capfd):
    command = ["quantize", model, "--text", text, *SHORT[:4], "--group-size", 64, "-q"]
    assert run(*command, "--output", tmp_path / "out", "--report", tmp_path / "run.json") == 0
    assert tuple(capfd.readouterr()) == ("", "")
    warnings = json.loads((tmp_path / "run.json").read_text())["warnings"]
    assert "group_size 64 does not divide" in warnings[0]


def test_a_summary_fits_a_terminal_where_a_device_was_used(tmp_path, model, text):
    report = numbacalib.quantize(
        model, tmp_path / "out", text=[text], samples=4, sequence_length=32, group_size=32
    )
    plan = replace(report.plan, peak_bytes=1_770_000_000, device_bytes=9_060_000_000)
    report = replace(report, plan=plan, peak_bytes=1_650_000_000, device_bytes=8_030_000_000)
    lines = report.summary().splitlines()
    assert sum(line.endswith("GB on the device") for line in lines) == 2
    assert max(map(len, lines)) <= 100


@pytest.fixture
def chosen(monkeypatch):
    """A device that "auto" chooses, which is the host."""
    monkeypatch.setattr(place, "_missing_packages", list)
    monkeypatch.setattr(place, "_device_count", lambda: 1)
    monkeypatch.setattr(place, "_driver_fault", lambda: None)
    monkeypatch.setattr(place, "_cuda", lambda _: HOST)


def test_the_choice_of_a_device_is_told_and_is_no_warning(
    tmp_path, model, text, capfd, caplog, chosen
):
    command = ["quantize", model, "--text", text, *SHORT, "--output", tmp_path / "out"]
    assert run(*command, "--report", tmp_path / "run.json") == 0
    assert "running on the first CUDA device (--device cpu for the host)" in caplog.messages
    capfd.readouterr()
    assert json.loads((tmp_path / "run.json").read_text())["warnings"] == []
    assert run("evaluate", tmp_path / "out", "--text", text, "--sequence-length", 32, "-q") == 0
    assert capfd.readouterr().err == ""


def test_a_pipe_gets_one_line_a_block(tmp_path, model, text, capsys):
    assert run("quantize", model, "--text", text, *SHORT, "--output", tmp_path / "out") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "block" in line]
    assert lines == [" 50 % block 1 of 2", "100 % block 2 of 2"]


@pytest.mark.parametrize("module", ["numbacalib", "numbacalib.cli"])
def test_the_module_is_the_command(module):
    command = [sys.executable, "-m", module, "--version"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed == f"numbacalib {numbacalib.__version__}\n"


def test_help_has_examples_and_exit_statuses(capsys):
    with pytest.raises(SystemExit):
        run("quantize", "--help")
    printed = capsys.readouterr().out
    assert "examples:\n  numbacalib quantize MODEL --text" in printed
    assert "Exit status: 0 done, 1 failed during the run" in printed


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("numbacalib qu", {"quantize"}),
        ("numbacalib quantize x --method ", {"gptq", "rtn", "awq"}),
        ("numbacalib quantize x --act", {"--act-order"}),
        ("numbacalib quantize x --text cal", {"calibration.txt"}),
    ],
)
def test_shells_complete_what_may_follow(tmp_path, line, expected):
    (tmp_path / "calibration.txt").touch()
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    asked |= {"_ARGCOMPLETE_SHELL": "bash", "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "found")}
    command = [sys.executable, "-m", "numbacalib"]
    subprocess.run(command, env=os.environ | asked, cwd=tmp_path, check=True)
    found = (tmp_path / "found").read_text().split("\v")
    assert {each.strip() for each in found} == expected


# From Python


def test_one_call_quantizes_and_reports_progress(tmp_path, model, text):
    seen = []
    report = numbacalib.quantize(
        model,
        tmp_path / "out",
        text=[text],
        bits=3,
        group_size=32,
        samples=4,
        sequence_length=32,
        progress=lambda *what: seen.append(what),
    )
    assert len(report.layers) == 14
    assert report.bits_a_weight == pytest.approx(3 + (16 + 3) / 32, abs=0.05)
    assert report.output_bytes < report.original_bytes
    phases = ["reading", "planning", "own text", "quantizing", "writing", "proving"]
    assert list(report.seconds) == phases
    assert ("block 2 of 2", 2, 2) in seen
    assert report.settings["bits"] == 3
    assert json.loads(report.as_json())["layers"][0]["bits"] == 3
    with pytest.raises(TypeError, match="settings: expected them or bits, got both"):
        numbacalib.quantize(model, tmp_path / "b", settings=numbacalib.quantizer.Settings(), bits=3)
