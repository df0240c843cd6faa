"""What calibrates a model and does not belong to it, or is not what it looks like: nothing passes."""

import json
import os
import shutil

import numpy as np
import pytest
from models.tiny import TEXT, tiny_tokenizer, write_tiny_checkpoint
from quantizer.runs import run
from safetensors.numpy import load_file, save_file

from numbacalib.quantizer import Settings, blocks, collection, job, quantize
from numbacalib.statistics import GradientStatistics, save_fisher

SHORT = ["--samples", "4", "--sequence-length", "32"]
GROUPS = ["--group-size", "32"]


@pytest.fixture
def saved(tmp_path, text, model):
    directory = tmp_path / "statistics"
    assert run("collect", model, "--text", text, *SHORT, "--output", directory) == 0
    return directory


def change(model, name, edit):
    """Edit one tensor of a checkpoint in place."""
    file = model / "model.safetensors"
    tensors = {key: tensor.copy() for key, tensor in load_file(file).items()}
    edit(tensors[name])
    save_file(tensors, file, metadata={"format": "pt"})


def change_config(model, **entries):
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def assert_refused(capsys, tmp_path, message, *command):
    capsys.readouterr()
    output = tmp_path / "refused"
    assert run(*command, "--output", output) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert not output.exists()


def one_more(tensor):
    tensor[-1] += 1


DOWN, NORM = "model.layers.1.mlp.down_proj.weight", "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda model: change(model, DOWN, one_more), f"{DOWN} has other values"),
        (lambda model: change(model, NORM, one_more), f"{NORM} has other values"),
        (
            lambda model: change(model, "model.embed_tokens.weight", one_more),
            "model.embed_tokens.weight has other values",
        ),
        (lambda model: change_config(model, rope_theta=5e4), "rope_theta was 10000.0, is 50000.0"),
        (lambda model: change_config(model, rms_norm_eps=1e-6), "rms_norm_eps was 1e-05, is 1e-06"),
        (
            lambda model: write_tiny_checkpoint(model, dtype="float16"),
            "model.embed_tokens.weight was {'shape': [320, 64], 'dtype': 'bfloat16'}, is",
        ),
        (
            lambda model: write_tiny_checkpoint(model, dtype="bfloat16", num_hidden_layers=3),
            "num_layers was 2, is 3",
        ),
    ],
)
def test_statistics_of_another_model_are_refused(tmp_path, model, saved, capsys, edit, message):
    edit(model)
    command = ["quantize", model, *GROUPS, "--statistics", saved]
    assert_refused(capsys, tmp_path, message, *command)
    assert_refused(capsys, tmp_path, "the statistics are of another model than", *command)


def test_what_statistics_do_not_depend_on_may_differ(tmp_path, model, saved):
    moved = model.rename(tmp_path / "moved")
    change(moved, "lm_head.weight", one_more)
    (moved / "tokenizer.json").write_text(tiny_tokenizer(300).to_str())
    command = ["quantize", moved, *GROUPS, "--statistics", saved]
    assert run(*command, "--output", tmp_path / "out") == 0


def cut(file):
    os.truncate(file, file.stat().st_size - 100)


def without_tokens(file):
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.down_proj.tokens"]
    save_file(tensors, file, metadata=metadata)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.json", os.unlink, "found none: collect them again"),
        ("model.json", lambda file: file.write_text("[1]"), "model.json: expected what collect"),
        ("block-0001.safetensors", os.unlink, "block-0001.safetensors: no such file"),
        (
            "block-0001.safetensors",
            cut,
            "block-0001.safetensors: expected what save_statistics wrote, got a dam",
        ),
        (
            "block-0001.safetensors",
            without_tokens,
            "block-0001.safetensors: model.layers.1.mlp.down_proj.tokens: expected such a tensor, got none",
        ),
        (
            "block-0001.safetensors",
            lambda file: shutil.copy(file.with_name("block-0000.safetensors"), file),
            "expected statistics of model.layers.1.self_attn.q_proj over 64 channels, got none",
        ),
    ],
)
def test_incomplete_statistics_are_found_before_any_work(
    tmp_path, model, saved, capsys, monkeypatch, name, damage, message
):
    monkeypatch.setattr(blocks, "quantize_group", None)
    damage(saved / name)
    assert_refused(capsys, tmp_path, message, "quantize", model, *GROUPS, "--statistics", saved)


def spoil(tensor):
    tensor.reshape(-1)[-3] = np.nan


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.1.input_layernorm.weight", "[61]"),
        ("model.layers.1.self_attn.k_norm.weight", "[13]"),
        ("model.layers.0.self_attn.q_proj.bias", "[61]"),
        ("model.layers.1.mlp.down_proj.weight", "[63, 93]"),
    ],
)
@pytest.mark.parametrize("command", ["quantize", "collect"])
def test_the_tensor_that_is_not_finite_is_named(tmp_path, text, capsys, command, name, place):
    model = write_tiny_checkpoint(tmp_path / "model", "qwen3", attention_bias=True)
    change(model, name, spoil)
    message = f"{model}: {name}: expected finite values, got nan at {place}"
    groups = GROUPS if command == "quantize" else []
    assert_refused(capsys, tmp_path, message, command, model, "--text", text, *SHORT, *groups)


def test_an_embedding_that_is_not_finite_is_named(tmp_path, text, model, capsys):
    token = tiny_tokenizer().encode(TEXT).ids[3]
    change(model, "model.embed_tokens.weight", lambda table: table[token].__setitem__(5, np.inf))
    message = f"{model}: model.embed_tokens.weight: expected finite values, got inf at [{token}, 5]"
    command = ["quantize", model, "--text", text, *SHORT, *GROUPS]
    assert_refused(capsys, tmp_path, message, *command)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        (
            {"mlp.up_proj": 1e20, "mlp.gate_proj": 1e20},
            "mlp.down_proj: inputs: expected finite values, got ",
        ),
        ({"mlp.up_proj": 1e25}, "mlp.down_proj: "),  # finite, its squares are not
        ({"self_attn.o_proj": 1e25}, "self_attn.o_proj: hidden states reach "),
        ({"mlp.down_proj": 1e25}, "mlp.down_proj: hidden states reach "),
    ],
)
@pytest.mark.parametrize("command", ["quantize", "collect"])
def test_an_overflow_names_its_layer(tmp_path, text, capsys, command, factors, message):
    model = write_tiny_checkpoint(tmp_path / "model")
    for name, factor in factors.items():
        scale = np.float32(factor)
        change(model, f"model.layers.0.{name}.weight", lambda w, s=scale: np.multiply(w, s, out=w))
    message = f"error: model.layers.0.{message}"
    command = [command, model, "--text", text, *SHORT, *(GROUPS if command == "quantize" else [])]
    assert_refused(capsys, tmp_path, message, *command)


def bad_fisher(shape, value=1.0):
    statistics = GradientStatistics(shape)
    statistics.update(np.ones(shape, np.float32))
    statistics.fisher[-1, -1] = value
    return statistics


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (bad_fisher((64, 95)), ": expected shape [96] or [64, 96], got [64, 95]"),
        (bad_fisher((64, 96), np.nan), ".fisher: expected finite values of 0 and more, got nan"),
        (bad_fisher((64, 96), -1), ".fisher: expected finite values of 0 and more, got -1"),
    ],
)
def test_importance_is_checked_as_a_whole_first(
    tmp_path, model, capsys, monkeypatch, damaged, message
):
    monkeypatch.setattr(blocks, "quantize_group", None)
    shapes = {
        name.removesuffix(".weight"): tensor.shape
        for name, tensor in load_file(model / "model.safetensors").items()
        if name.endswith("_proj.weight")
    }
    fisher = {name: bad_fisher(shape) for name, shape in shapes.items()}
    last, file = "model.layers.1.mlp.down_proj", tmp_path / "fisher.safetensors"
    save_fisher(file, fisher | {last: damaged})
    command = ["quantize", model, *GROUPS, "--method", "rtn", "--ranges", "weighted"]
    message = last + message
    assert_refused(capsys, tmp_path, message, *command, "--importance", file)


LONG = ["--samples", "16", "--sequence-length", "64"]


def test_text_that_only_looks_like_enough_is_said(tmp_path, text, model, caplog, capsys):
    """Four words a thousand times over are as many tokens as real text."""
    few = tmp_path / "few.txt"
    few.write_text(" the the quick dog the dog quick" * 1000)
    command = ["quantize", model, *LONG, *GROUPS]
    assert run(*command, "--text", text, "--output", tmp_path / "varied") == 0
    assert "directions" not in caplog.text
    report = tmp_path / "report.json"
    command += ["--text", few, "--own-text", "0", "--report", report, "--verbose"]
    assert run(*command, "--output", tmp_path / "few") == 0
    first = json.loads(report.read_text())["layers"][0]
    assert first["full_rank"]
    assert 1 < first["effective_rank"] < 16
    assert "vary in few directions (model.layers.0." in caplog.text
    assert "of 64, from 1024 tokens that are much alike): calibrate on more varied" in caplog.text
    assert f"| {first['effective_rank']:.4g}" in " ".join(capsys.readouterr().out.split())


def test_inputs_of_zeros_are_said(tmp_path, text, model, caplog):
    for name in ("input_layernorm", "post_attention_layernorm"):
        change(model, f"model.layers.1.{name}.weight", lambda norm: norm.fill(0))
    command = ["quantize", model, "--text", text, *LONG, *GROUPS]
    assert run(*command, "--output", tmp_path / "out") == 0
    assert "7 of 14 layers had inputs of zeros alone (model.layers.1.self_attn.q" in caplog.text


@pytest.mark.parametrize("command", ["quantize", "collect"])
def test_a_file_that_changes_under_the_run_ends_it(
    tmp_path, text, model, capsys, monkeypatch, command
):
    file = model / "model.safetensors"

    def touch(*_, **__):
        os.utime(file, ns=(0, 0))
        return tokens(*_, **__)

    module, name = {
        "quantize": (job, "read_split"),
        "collect": (collection, "read_sequences"),
    }[command]
    tokens = getattr(module, name)
    monkeypatch.setattr(module, name, touch)
    groups = GROUPS if command == "quantize" else []
    assert_refused(capsys, tmp_path, str(file), command, model, "--text", text, *SHORT, *groups)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"max_fallbacks": float("nan")}, ValueError, "max_fallbacks: expected a finite number"),
        ({"percdamp": float("inf")}, ValueError, "percdamp: expected a finite number, got inf"),
        ({"shrinkage": float("nan")}, ValueError, "shrinkage: expected a finite number, got nan"),
        ({"percdamp": "0.01"}, TypeError, "percdamp: expected a number, got str"),
        ({"bits": 4.0}, TypeError, "bits: expected an integer, got float"),
        ({"group_size": -1}, ValueError, "group_size: expected 1 to"),
        ({"samples": 2.5}, TypeError, "samples: expected an integer, got float"),
        ({"sequence_length": None}, TypeError, "sequence_length: expected an integer"),
        ({"symmetric": "no"}, TypeError, "symmetric: expected a bool, got str"),
        ({"static_groups": 1}, TypeError, "static_groups: expected a bool, got int"),
        ({"awq_weight_term": "no"}, TypeError, "awq_weight_term: expected a bool, got str"),
    ],
)
def test_settings_are_checked_before_anything_is_read(tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        quantize(tmp_path / "absent", tmp_path / "out", settings=Settings(**settings))
