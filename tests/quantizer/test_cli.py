"""The command line on tiny models: what it writes, what it prints, and how it fails."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from models.tiny import write_tiny_checkpoint
from quantizer.runs import run

from numbacalib.formats.compressed_tensors import CompressedTensors
from numbacalib.models import open_checkpoint

SHORT = ["--samples", "4", "--sequence-length", "32", "--group-size", "32"]


@pytest.fixture
def model(tmp_path):
    return write_tiny_checkpoint(tmp_path / "model")


def perplexity(capsys, *arguments):
    capsys.readouterr()
    assert run("evaluate", *arguments, "--sequence-length", "32") == 0
    words = capsys.readouterr().out.split()
    assert words[0] == "perplexity"
    return float(words[1])


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("grid", ["--symmetric", "--asymmetric"])
def test_quantize_writes_a_checkpoint_that_evaluates(tmp_path, text, capsys, model_type, grid):
    model = write_tiny_checkpoint(tmp_path / "model", model_type, dtype="bfloat16", shards=2)
    output = tmp_path / "out"
    assert (
        run("quantize", model, "--text", text, *SHORT, grid, "--bits", 8, "-v", "--output", output)
        == 0
    )
    table = capsys.readouterr().out.partition("worst of")[0]
    assert table.count("model.layers.") == 14
    config = json.loads((output / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert (output / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    original = perplexity(capsys, model, "--text", text)
    assert perplexity(capsys, output, "--text", text) == pytest.approx(original, rel=0.02)


def test_what_is_not_quantized_stays_as_it_is(tmp_path, text, model):
    output = tmp_path / "out"
    assert run("quantize", model, "--text", text, *SHORT, "--output", output) == 0
    before, after = open_checkpoint(model), open_checkpoint(output)
    layers = CompressedTensors().layers(after)
    assert len(layers) == 14
    others = [name for name in before.names() if name.removesuffix(".weight") not in layers]
    assert "model.embed_tokens.weight" in others
    assert "lm_head.weight" in others
    for name in others:
        np.testing.assert_array_equal(after.tensor(name), before.tensor(name))


def test_gptq_loses_less_than_rounding(tmp_path, text, capsys, model):
    output = tmp_path / "out"
    command = ["quantize", model, "--text", text, *SHORT, "--bits", 3, "-v", "--output", output]
    assert run(*command) == 0
    rows = [
        line.split("|")
        for line in capsys.readouterr().out.partition("worst of")[0].splitlines()
        if ".proj" in line or "_proj" in line
    ]
    ratios = [float(row[6]) for row in rows]
    assert len(ratios) == 14
    assert np.mean(ratios) < 0.9


def test_rtn_needs_no_text(tmp_path, model):
    output = tmp_path / "out"
    assert run("quantize", model, "--method", "rtn", "--group-size", 32, "--output", output) == 0
    assert len(CompressedTensors().layers(open_checkpoint(output))) == 14


def group_sizes(output):
    return {
        name: layer.group_size
        for name, layer in CompressedTensors().layers(open_checkpoint(output)).items()
    }


@pytest.mark.parametrize(
    ("grid", "sizes", "message"),
    [
        ("--symmetric", {64, 48}, "group_size 64 does not divide K: groups of 48 for K = 96"),
        (
            "--asymmetric",
            {32},
            "group_size 64 does not divide every K, and the file format has one length: "
            "groups of 32 for K = 64, 96",
        ),
    ],
)
def test_groups_that_do_not_divide_take_the_longest_that_do(
    tmp_path, text, caplog, capsys, model, grid, sizes, message
):
    output = tmp_path / "out"
    command = ["quantize", model, "--text", text, *SHORT[:4], grid]
    assert run(*command, "--group-size", 64, "--bits", 8, "--output", output) == 0
    assert caplog.text.count("group_size") == 1
    assert message in caplog.text
    assert set(group_sizes(output).values()) == sizes
    original = perplexity(capsys, model, "--text", text)
    assert perplexity(capsys, output, "--text", text) == pytest.approx(original, rel=0.02)


@pytest.mark.parametrize(
    ("form", "lengths"), [("gptq", "groups of 32 for K = 64, 96"), ("mlx", "32 for K = 96")]
)
def test_it_is_said_of_formats_that_find_asymmetric_grids_themselves_too(
    tmp_path, caplog, model, form, lengths
):
    command = ["quantize", model, "--method", "rtn", "--format", form, "--group-size", 64]
    assert run(*command, "--output", tmp_path / "out") == 0
    assert "group_size 64 does not divide" in caplog.text
    assert lengths in caplog.text


def test_whole_rows_are_for_who_asks(tmp_path, text, caplog, model):
    output = tmp_path / "out"
    command = ["quantize", model, "--text", text, *SHORT[:4], "--group-size", "none"]
    assert run(*command, "--output", output) == 0
    assert "group_size" not in caplog.text
    assert set(group_sizes(output).values()) == {64, 96}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"intermediate_size": 94},
            "group_size: 64 does not divide K = 64, 94, and 2, the longest below it that does, is "
            "under 16: use none (one scale a row) or the symmetric grid",
        ),
        (
            {"head_dim": 4, "hidden_size": 64, "num_key_value_heads": 2},
            "model.layers.0.self_attn.k_proj: compressed-tensors 0.20 cannot read 4-bit zero points "
            "of 8 rows in 4 groups",
        ),
    ],
)
def test_layers_that_cannot_be_stored_are_refused(tmp_path, capsys, overrides, message):
    model, output = write_tiny_checkpoint(tmp_path / "narrow", **overrides), tmp_path / "out"
    command = ["quantize", model, "--method", "rtn", "--group-size", 64, "--output", output]
    assert run(*command) == 2
    assert_one_line(capsys, message)
    assert not output.exists()


def test_no_torch_is_imported(tmp_path, text, model):
    code = (
        "import sys; from numbacalib.cli import main; status = main(sys.argv[1:]); "
        "assert not any(name.partition('.')[0] in ('torch', 'transformers') for name in sys.modules); "
        "sys.exit(status)"
    )
    command = [sys.executable, "-c", code, "quantize", model, "--text", text, *SHORT]
    result = subprocess.run(
        [*map(str, command), "--output", str(tmp_path / "out")], capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr


def truncate(model):
    file = model / "model.safetensors"
    os.truncate(file, file.stat().st_size - 100)


def rename_architecture(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))


def spoil_weight(model):
    write_tiny_checkpoint(model, dtype="float16", seed=1)
    checkpoint = open_checkpoint(model)
    from safetensors.numpy import save_file

    tensors = {name: np.array(checkpoint.tensor(name)) for name in checkpoint.names()}
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.inf
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "model.safetensors"),
        (rename_architecture, "mamba"),
        (lambda model: (model / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda model: (model / "config.json").write_text("{"), "config.json"),
        (lambda model: (model / "model.safetensors").unlink(), "safetensors"),
        (spoil_weight, "model: model.layers.1.mlp.up_proj.weight: expected finite values, got inf"),
    ],
)
def test_bad_models_give_one_line_and_no_output(tmp_path, text, capsys, model, damage, message):
    damage(model)
    output = tmp_path / "out"
    assert run("quantize", model, "--text", text, *SHORT, "--output", output) == 2
    assert_one_line(capsys, message)
    assert not output.exists()
    assert not list(tmp_path.glob(".out*"))


def assert_one_line(capsys, message):
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("numbacalib: error: ")]
    assert len(errors) == 1
    assert errors == lines[-1:]
    assert message in errors[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", "absent.txt", *SHORT], "absent.txt"),
        ([*SHORT], "text: required for calibration; --method rtn alone needs none"),
        (["--samples", "100000", "--sequence-length", "32", "--group-size", "32"], "got"),
        ([*SHORT, "--bits", "9"], "bits: expected 2 to 8, got 9"),
        ([*SHORT[:4], "--group-size", "0"], "group_size: expected"),
        ([*SHORT, "--sequence-length", "1"], "sequence_length: expected 2 to 2147483648, got 1"),
        ([*SHORT, "--samples", "0"], "samples: expected 1 to 2147483648, got 0"),
        ([*SHORT, "--max-fallbacks", "nan"], "max_fallbacks: expected a finite number, got nan"),
        ([*SHORT, "--max-fallbacks", "-1"], "max_fallbacks: expected 0 to 1, got -1"),
        ([*SHORT, "--max-fallbacks", "inf"], "max_fallbacks: expected a finite number, got inf"),
        ([*SHORT, "--percdamp", "nan"], "percdamp: expected a finite number, got nan"),
        ([*SHORT, "--percdamp", "-0.1"], "percdamp: expected 0 to 1e+06, got -0.1"),
        ([*SHORT, "--percdamp", "1e300"], "percdamp: expected 0 to 1e+06, got 1e+300"),
        ([*SHORT, "--damping-tries", "0"], "damping_tries: expected 1 to 100, got 0"),
        ([*SHORT, "--shrinkage", "nan"], "shrinkage: expected a finite number, got nan"),
        ([*SHORT, "--shrinkage", "1.5"], "shrinkage: expected 0 to 1, got 1.5"),
        (["--method", "rtn", "--percdamp", "nan"], "percdamp: expected a finite number, got nan"),
    ],
)
def test_bad_settings_give_one_line_and_no_output(tmp_path, text, capsys, model, options, message):
    if "--text" not in options and message == "got":
        options = ["--text", text, *options]
    output = tmp_path / "out"
    assert run("quantize", model, *options, "--output", output) == 2
    assert_one_line(capsys, message)
    assert not output.exists()


def test_a_model_that_is_not_there(tmp_path, capsys):
    assert run("quantize", tmp_path / "absent", "--output", tmp_path / "out") == 2
    assert_one_line(capsys, "absent: no such file or directory")
    assert run("evaluate", tmp_path / "absent", "--text", tmp_path / "absent.txt") == 2
    assert_one_line(capsys, "absent: no such file or directory")


def test_an_output_in_use_is_left_alone(tmp_path, text, capsys, model):
    output = tmp_path / "out"
    output.mkdir()
    (output / "precious").write_text("kept")
    assert run("quantize", model, "--text", text, *SHORT, "--output", output) == 2
    assert_one_line(capsys, "expected a new or empty directory")
    assert [file.name for file in output.iterdir()] == ["precious"]


def test_a_quantized_model_is_not_quantized_again(tmp_path, text, capsys, model):
    first = tmp_path / "first"
    assert run("quantize", model, "--text", text, *SHORT, "--output", first) == 0
    capsys.readouterr()
    assert run("quantize", first, "--text", text, *SHORT, "--output", tmp_path / "second") == 2
    assert_one_line(capsys, "expected an unquantized checkpoint")


def test_a_full_disk_gives_one_line_and_no_output(tmp_path, text, model):
    def small_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    output = tmp_path / "out"
    command = [sys.executable, "-m", "numbacalib.cli", "quantize", model, "--method", "rtn"]
    result = subprocess.run(
        [*map(str, command), "--group-size", "32", "--output", str(output)],
        capture_output=True,
        text=True,
        preexec_fn=small_files,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("numbacalib: error: ")
    assert "Traceback" not in result.stderr
    assert not output.exists()


def test_a_killed_run_leaves_no_output_and_does_not_disturb_the_next(tmp_path, text, model):
    output = tmp_path / "out"
    command = [sys.executable, "-m", "numbacalib.cli", "quantize", str(model), "--text", str(text)]
    command += [*SHORT, "--output", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.partial-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not output.exists()
    assert list(tmp_path.glob(".out.partial-*"))
    assert run("quantize", model, "--text", text, *SHORT, "--output", output) == 0
    assert output.is_dir()


def test_an_interrupt_leaves_nothing(tmp_path, text, model, monkeypatch, capsys):
    from numbacalib.quantizer import blocks

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(blocks, "quantize_group", interrupt)
    assert run("quantize", model, "--text", text, *SHORT, "--output", tmp_path / "out") == 130
    assert_one_line(capsys, "interrupted")
    assert not list(tmp_path.glob("*out*"))
