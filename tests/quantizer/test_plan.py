"""The plan of a run: sizes to the byte, times from a trial, and refusals of what cannot fit."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import textwrap

import pytest
from models.tiny import write_tiny_checkpoint
from quantizer.runs import run

import numbacalib
from numbacalib.models import HOST
from numbacalib.models.place import Place
from numbacalib.quantizer import blocks, pipeline, plan, preflight, trial

SHORT = ["--samples", "4", "--sequence-length", "32", "--group-size", "32"]


@pytest.fixture
def model(tmp_path):
    return write_tiny_checkpoint(tmp_path / "model", dtype="bfloat16", num_hidden_layers=4)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--method", "rtn"],
        ["--channel-scales", "awq"],
        ["--skip", "*layers.0*"],
        ["--target", "propagated"],
    ],
    ids=str,
)
def test_the_plan_alone_writes_nothing(tmp_path, model, text, capsys, monkeypatch, options):
    monkeypatch.setattr(blocks, "quantize_group", None)  # the trial's own is the plan's
    command = ["quantize", model, "--text", text, *SHORT, *options]
    assert run(*command, "--plan", "--output", tmp_path / "out") == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("plan: ") for line in lines)
    count = 21 if options[:1] == ["--skip"] else 28
    assert lines[0].startswith(f"plan: {count} layers, {count} of 4 bits, 4.")
    assert "kB of output" in lines[1]
    assert "quantizing" in lines[2]
    assert not list(tmp_path.glob("*out*"))


def test_the_plan_tells_all_widths(tmp_path, model, text, capsys):
    command = ["quantize", model, "--text", text, *SHORT, "--symmetric", "--plan"]
    command += ["--bits", "3", "*.down_proj=8"]
    assert run(*command, "--output", tmp_path / "out") == 0
    assert "plan: 28 layers, 24 of 3 bits and 4 of 8 bits, 4." in capsys.readouterr().out


@pytest.mark.parametrize("names", [["compressed-tensors"], ["gptq_v2", "mlx", "awq"]])
def test_sizes_are_those_that_come(tmp_path, text, names):
    model = write_tiny_checkpoint(tmp_path / "model", dtype="float16")
    seen = []
    report = numbacalib.quantize(
        model,
        tmp_path / "out",
        text=[text],
        samples=4,
        sequence_length=32,
        group_size=32,
        symmetric=True,
        formats=names,
        device="cpu",
        planned=seen.append,
    )
    assert seen == [report.plan]
    # of several formats the mean, which MLX's biases are a part of
    bits = pytest.approx(report.bits_a_weight, rel=1e-9 if len(names) == 1 else 0.1)
    assert report.plan.bits_a_weight == bits
    share = pytest.approx(report.plan.output_bytes / len(names), rel=0.05)
    assert report.output_bytes == share
    assert report.plan.layers == len(report.layers)
    assert report.plan.tokens == 128
    assert set(report.plan.seconds) <= set(report.seconds)
    assert all(seconds > 0 for seconds in report.plan.seconds.values())
    assert report.plan.peak_bytes > 0
    assert report.plan.device_bytes == 0
    assert "planned" in report.summary()
    planned = json.loads(report.as_json())["plan"]["output_bytes"]
    assert planned == report.plan.output_bytes


def test_what_is_finished_is_not_planned_again(tmp_path, model, text, monkeypatch):
    command = ["quantize", model, "--text", text, *SHORT, "--output", tmp_path / "out"]
    real = blocks.quantize_group

    def interrupt(job, block, *rest):
        if block.name == "model.layers.3":
            raise KeyboardInterrupt
        return real(job, block, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(blocks, "quantize_group", interrupt)
        assert run(*command) == 130
    finished = []
    real_plan = plan.make_plan
    monkeypatch.setattr(
        "numbacalib.quantizer.pipeline.make_plan",
        lambda job, **sizes: finished.append(sizes["finished"]) or real_plan(job, **sizes),
    )
    assert run(*command) == 0
    assert finished == [3]


def test_a_head_that_is_kept_is_not_planned_again(tmp_path, text, monkeypatch):
    model = write_tiny_checkpoint(
        tmp_path / "untied", tie_word_embeddings=False, num_hidden_layers=4
    )
    found = {}

    def planned(job, **sizes):
        for finished in (3, 4, 5):  # of four blocks, and the head after them
            found[finished] = plan.make_plan(job, **sizes | {"finished": finished})
        return found[3]

    monkeypatch.setattr("numbacalib.quantizer.pipeline.make_plan", planned)
    command = ["quantize", model, "--text", text, *SHORT, "--output", tmp_path / "out", "--plan"]
    assert run(*command, "--lm-head") == 0
    assert [len(found[finished].block_seconds) for finished in (3, 4, 5)] == [2, 1, 0]
    assert found[5].seconds["quantizing"] == 0 < found[4].seconds["quantizing"]


def test_too_little_memory_names_what_would_fit(tmp_path, text, capsys, monkeypatch):
    model = write_tiny_checkpoint(tmp_path / "model", intermediate_size=4096)
    command = ["quantize", model, "--text", text, "--samples", 16, "--sequence-length", 32]
    command += ["--group-size", 32, "--target", "layerwise", "--output", tmp_path / "out"]
    command += ["--device", "cpu"]
    made = []
    real = plan.make_plan

    def make_plan(job, **sizes):
        made.append(real(job, **sizes))
        return made[-1]

    monkeypatch.setattr(pipeline, "make_plan", make_plan)
    monkeypatch.setattr(plan, "resident_memory", lambda: 0)
    assert run(*command, "--samples", 8, "--plan") == 0
    monkeypatch.setattr(Place, "free_bytes", lambda _: made[0].peak_bytes)
    assert run(*command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "cpu: expected " in error
    assert " of free memory for the run, found " in error
    assert error.endswith(": --samples 8 would fit")
    monkeypatch.setattr(Place, "free_bytes", lambda _: 1000)
    assert run(*command) == 1
    assert capsys.readouterr().err.endswith("found 1 kB: no option would fit\n")
    assert not list(tmp_path.glob("*out*"))


def refusals(tmp_path, model, text, capsys, monkeypatch, *options):
    """Plan a run, and then give it a byte less than it needs: what is said to fit."""
    command = ["quantize", model, "--text", text, *SHORT, *options, "--output", tmp_path / "out"]
    command += ["--device", "cpu"]
    made = []
    real = plan.make_plan

    def make_plan(job, **sizes):
        made.append(real(job, **sizes))
        return made[-1]

    monkeypatch.setattr(pipeline, "make_plan", make_plan)
    monkeypatch.setattr(plan, "resident_memory", lambda: 0)
    assert run(*command, "--plan") == 0
    monkeypatch.setattr(Place, "free_bytes", lambda _: made[0].peak_bytes - 1)
    assert run(*command) == 1
    assert not list(tmp_path.glob("*out*"))
    return capsys.readouterr().err.splitlines()[-1]


def test_a_second_stream_is_what_can_be_spared(tmp_path, text, capsys, monkeypatch):
    model = write_tiny_checkpoint(tmp_path / "model", intermediate_size=4096)
    found = refusals(tmp_path, model, text, capsys, monkeypatch, "--target", "propagated")
    assert found.endswith(": --target layerwise would fit")


def test_a_disk_without_room_for_what_is_kept_names_the_option(
    tmp_path, model, text, capsys, monkeypatch
):
    command = ["quantize", model, "--text", text, *SHORT, "--output", tmp_path / "out"]
    made = []
    assert numbacalib.quantize(
        model, tmp_path / "first", text=[text], planned=made.append, samples=4, sequence_length=32,
        group_size=32,
    )  # fmt: skip
    usage = shutil.disk_usage(tmp_path)._replace(free=made[0].output_bytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert run(*command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith(" free: --work on another file system would fit")
    assert not list(tmp_path.glob("*out*"))


LATE = """
    import json, sys
    import numbacalib
    from numbacalib.runtime.jit import _announcement

    def known():
        kernels = _announcement.kernels
        return {(kernel.__name__, str(each)) for kernel in kernels for each in kernel.signatures}

    model, output, text, options = sys.argv[1:]
    before = set()
    numbacalib.quantize(
        model, output, text=[text], samples=4, sequence_length=32, group_size=32, device="cpu",
        **json.loads(options),
        planned=lambda plan: before.update(known()),
    )
    print(json.dumps(sorted(known() - before)))
"""


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target": "layerwise", "symmetric": True},
        {"method": "rtn", "channel_scales": "awq", "ranges": "clip", "lm_head": True},
    ],
    ids=str,
)
def test_no_kernel_is_needed_that_the_trial_has_not_compiled(tmp_path, model, text, options):
    """In a process of its own, so that it knows none yet."""
    command = [sys.executable, "-c", textwrap.dedent(LATE), model, tmp_path / "out", text]
    command.append(json.dumps(options))
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_a_slow_machine_tries_little(tmp_path, model, text, monkeypatch):
    """A sequence, the smallest stage: no more than that where they take long."""
    tried = []
    real = trial.TextCalibration.trial

    def noting(calibration, block, sequences):
        tried.append(sequences)
        return real(calibration, block, sequences)

    monkeypatch.setattr(trial.TextCalibration, "trial", noting)
    real_group = trial.quantize_group

    def noting_group(job, block, inputs, settings):
        tried.append(tuple(inputs))
        return real_group(job, block, inputs, settings)

    monkeypatch.setattr(trial, "quantize_group", noting_group)
    options = {"text": [text], "samples": 4, "sequence_length": 32, "group_size": 32}
    numbacalib.quantize(model, tmp_path / "quick", **options)
    small, large = ("self_attn.o_proj",), ("mlp.down_proj",)
    assert tried == [1, 1, 2, 2, small, small, large, large]
    tried.clear()
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    numbacalib.quantize(model, tmp_path / "slow", **options)
    assert tried == [1, 1, small, small]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep less")
def test_freed_memory_is_given_back():
    """Chunks that are too small to be mapped each by itself, below one that is still used."""
    chunks = [bytearray(60_000) for _ in range(3000)]
    used = chunks.pop()
    chunks.clear()
    before = preflight.resident_memory()
    HOST.give_back()
    assert preflight.resident_memory() < before - 100_000_000
    assert len(used) == 60_000


def test_the_system_says_what_is_free():
    assert HOST.free_bytes() > 1 << 20
