"""Models of experts through the whole quantizer."""

from __future__ import annotations

import json

import numpy as np
import pytest
from models.described import write_described_checkpoint
from quantizer.runs import run
from safetensors.numpy import load_file, save_file

from numbacalib.formats.compressed_tensors import CompressedTensors
from numbacalib.models import HOST, Decoder, open_checkpoint
from numbacalib.models.parts import Parts
from numbacalib.quantizer import Settings, blocks, collect, quantize
from numbacalib.quantizer.expert_calibration import expert_groups
from numbacalib.quantizer.report import layer_table

SHORT = ["--samples", "4", "--sequence-length", "32", "--group-size", "16"]
SETTINGS = Settings(group_size=16, samples=4, sequence_length=32)
TOKENS, KEPT = 4 * 32, 2


@pytest.fixture
def model(tmp_path):
    """Two layers of six experts, without a preference between them."""
    return write_described_checkpoint(tmp_path / "model", "glm4_moe", dtype="bfloat16")


def shun(model, expert):
    """Let no token go to an expert of the first layer."""
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.0.mlp.gate.e_score_correction_bias"
    tensors[name] = tensors[name].copy()
    tensors[name][expert] = -100
    save_file(tensors, model / "model.safetensors")


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_the_command_line_writes_a_model_of_experts(tmp_path, text, model, capsys, method):
    output, report = tmp_path / "out", tmp_path / "report.json"
    command = ["quantize", model, "--text", text, *SHORT, "--method", method, "--bits", "8"]
    assert run(*command, "--output", output, "--report", report, "-v") == 0
    printed = capsys.readouterr().out
    assert printed.count(".mlp.experts.*.gate_proj") == 4  # in both tables, of both layers
    assert ".mlp.experts.3." not in printed.partition("worst of")[0]
    layers = json.loads(report.read_text())["layers"]
    assert len(layers) == 2 * (4 + 3 + 3 * 6)
    config = json.loads((output / "config.json").read_text())["quantization_config"]
    experts, others = config["config_groups"].values()
    assert experts["targets"] == [r"re:.*\.experts\.\d+\..*"]
    assert (experts["weights"]["symmetric"], others["weights"]["symmetric"]) == (True, False)
    assert {"model.layers.0.mlp.gate", "lm_head"} < set(config["ignore"])
    ours, theirs = open_checkpoint(output), open_checkpoint(model)
    for name in ours.names():  # routers, norms and the correction stay as they are
        if "mlp.gate." in name or "norm" in name:
            np.testing.assert_array_equal(ours.tensor(name), theirs.tensor(name))
    stored = CompressedTensors().layers(ours)
    assert len(stored) == len(layers)
    for name in stored:
        original = theirs.tensor(f"{name}.weight").astype(np.float32)
        assert abs(stored[name].dequantize() - original).max() < 0.05 * abs(original).max()


def reports_of(model, output, text, **options):
    found = quantize(model, output, text=[text], settings=Settings(**(SHARED | options)))
    return {report.name.removeprefix("model.layers."): report for report in found.layers}


SHARED = {"group_size": 16, "samples": 4, "sequence_length": 32}


def test_statistics_are_of_the_tokens_that_are_routed_to_an_expert(tmp_path, text, model):
    reports = reports_of(model, tmp_path / "out", text)
    for layer in range(2):
        tokens = [reports[f"{layer}.mlp.experts.{e}.gate_proj"].tokens for e in range(6)]
        assert sum(tokens) == KEPT * TOKENS
        assert len(set(tokens)) > 1
        assert tokens == [reports[f"{layer}.mlp.experts.{e}.up_proj"].tokens for e in range(6)]
        assert tokens == [reports[f"{layer}.mlp.experts.{e}.down_proj"].tokens for e in range(6)]
        assert reports[f"{layer}.mlp.shared_experts.up_proj"].tokens == TOKENS


def test_or_of_all_tokens(tmp_path, text, model):
    shun(model, 1)
    reports = reports_of(model, tmp_path / "out", text, experts="all")
    experts = [report for name, report in reports.items() if ".experts." in name]
    assert {report.tokens for report in experts} == {TOKENS}
    assert {report.remedy for report in experts} == {None}


def test_an_expert_without_tokens_is_not_rounded_to_nearest(tmp_path, text, model, caplog):
    shun(model, 1)
    reports = reports_of(model, tmp_path / "out", text)
    for part in ("gate", "up", "down"):
        report = reports[f"0.mlp.experts.1.{part}_proj"]
        assert (report.tokens, report.remedy, report.method) == (0, "pooled", "gptq")
        assert report.loss < report.rtn_loss
    assert "of experts that saw few tokens" in caplog.text
    table = layer_table(list(reports.values()))
    (row,) = (line for line in table.splitlines()[20:] if "0.mlp.experts.*.down_proj" in line)
    assert [cell.strip() for cell in row.split("|")][2:4] == ["6", "0"]


def losses_of(model, most_bytes):
    """Hessians of all experts' inputs in order, and the states after a block."""
    decoder = Decoder(open_checkpoint(model))
    hidden = decoder.embed(np.arange(40).reshape(2, 20))
    block = decoder.block(0)
    found = []
    for group in expert_groups(block, Parts([hidden[:1], hidden[1:]]), False, most_bytes):
        found += [(stage, inputs.own.hessian, inputs.own.tokens) for stage, inputs in group]
    return sorted(found, key=lambda item: item[0]), hidden


def test_the_number_of_experts_in_memory_changes_nothing(model):
    (few, after_few), (many, after_many) = losses_of(model, 1), losses_of(model, HOST.held_bytes)
    np.testing.assert_array_equal(after_few, after_many)
    assert len(few) == len(many) == 12
    for (stage, hessian, tokens), (other, wanted, count) in zip(few, many, strict=True):
        assert (stage, tokens) == (other, count)
        np.testing.assert_array_equal(hessian, wanted)


def test_statistics_of_an_expert_are_those_of_its_rows(model):
    decoder = Decoder(open_checkpoint(model))
    hidden = decoder.embed(np.arange(40).reshape(2, 20))
    block = decoder.block(0)
    groups = expert_groups(block, Parts([hidden[:1], hidden[1:]]), False, HOST.held_bytes)
    rows = block.mlp.input(hidden).reshape(-1, 64)
    for number, (_, inputs) in enumerate(next(groups)):
        own = rows[block.mlp.routes(rows, rows).tokens(number)].astype(np.float64)
        assert inputs.own.tokens == len(own)
        for statistics, part in zip(
            (inputs.own, *inputs.halves(), inputs.pooled()),
            (own, own[: len(own) // 2], own[len(own) // 2 :], rows.astype(np.float64)),
            strict=True,
        ):
            assert statistics.tokens == len(part)
            expected = 2 / max(len(part), 1) * part.T @ part
            np.testing.assert_allclose(statistics.hessian, expected, rtol=0, atol=1e-5)


def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch, text, model):
    command = ["quantize", model, "--text", text, *SHORT]
    assert run(*command, "--output", tmp_path / "whole") == 0
    real = blocks.quantize_experts

    def failing(weights, *arguments):
        if "model.layers.1.mlp.experts.2.down_proj" in weights:
            raise KeyboardInterrupt
        return real(weights, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(blocks, "quantize_experts", failing)
        assert run(*command, "--output", tmp_path / "out") == 130
    assert run(*command, "--output", tmp_path / "out") == 0
    for file in sorted((tmp_path / "whole").glob("*.safetensors")):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"target": "propagated"}, "target: expected layerwise with a model of experts"),
        ({"experts": "some"}, "experts: expected routed or all, got 'some'"),
    ],
)
def test_what_experts_have_not_is_refused(tmp_path, text, model, options, named):
    with pytest.raises(ValueError, match=named):
        reports_of(model, tmp_path / "out", text, **options)
    with pytest.raises(ValueError, match="statistics: expected none with a model of experts"):
        quantize(model, tmp_path / "out", statistics=tmp_path / "s", settings=SETTINGS)
    with pytest.raises(ValueError, match="expected a model without experts"):
        collect(model, tmp_path / "out", text=[text], samples=1, sequence_length=8)
    assert not (tmp_path / "out").exists()


def test_experts_may_be_left_as_they_are(tmp_path, text, model):
    reports = reports_of(model, tmp_path / "out", text, skip=("*.experts.[0-4].*",))
    experts = {name.split(".")[3] for name in reports if ".experts." in name}
    assert experts == {"5"}
    checkpoint = open_checkpoint(tmp_path / "out")
    name = "model.layers.1.mlp.experts.0.up_proj.weight"
    np.testing.assert_array_equal(checkpoint.tensor(name), open_checkpoint(model).tensor(name))
