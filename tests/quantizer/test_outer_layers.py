"""Heads and embeddings that are quantized because it was asked for."""

from __future__ import annotations

import json

import naive
import numpy as np
import pytest
from models.tiny import TEXT, write_tiny_checkpoint

from numbacalib.cli import main
from numbacalib.formats import FORMATS, dequantized
from numbacalib.formats.registry import stored_layers
from numbacalib.methods import gptq, proxy_loss, rtn
from numbacalib.models import Decoder, open_checkpoint
from numbacalib.quantizer import evaluate, quantize
from numbacalib.quantizer.text import read_split

LENGTHS = {"samples": 4, "sequence_length": 32}
SHORT = LENGTHS | {"own_text": 0}
ALONE = {"target": "layerwise", "refit": False}
GRID = {"bits": 4, "group_size": 32, "symmetric": True}
OWN = ("nvfp4", "mxfp4", "mlx:mxfp4", "mlx:nvfp4", "gguf:Q8_0")
"""Formats that set the grid themselves."""


def grid_in(name):
    return {} if name in OWN else GRID


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("t") / "text.txt"
    file.write_text(TEXT * 10, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    directory = tmp_path_factory.mktemp("m")
    own = {"dtype": "float16", "intermediate_size": 128}
    return {
        tied: write_tiny_checkpoint(directory / str(tied), tie_word_embeddings=tied, **own)
        for tied in (False, True)
    }


def head_inputs(directory, text):
    """What the final norm gives to the head, over the blocks as they are stored."""
    checkpoint = open_checkpoint(directory)
    tokens, _ = read_split(checkpoint, [text], SHORT["sequence_length"], SHORT["samples"], 32)
    decoder = Decoder(dequantized(checkpoint))
    hidden = decoder.forward(tokens)
    return decoder.head_inputs(hidden).reshape(-1, decoder.config.hidden_size)


@pytest.mark.parametrize("name", ["compressed-tensors", "gptq_v2", "nvfp4", "mxfp4", "mlx"])
def test_a_head_is_calibrated_on_the_outputs_of_the_final_norm(tmp_path, models, text, name):
    report = quantize(
        models[False],
        tmp_path / "out",
        text=[text],
        formats=[name],
        lm_head=True,
        **grid_in(name),
        **SHORT,
        **ALONE,
    )
    checkpoint = open_checkpoint(tmp_path / "out")
    layers = stored_layers(checkpoint)
    assert "lm_head" in layers
    assert "lm_head.weight" not in checkpoint.names() or name == "mlx"
    *_, own = report.layers
    assert own.name == "lm_head"
    assert own.loss < own.rtn_loss
    inputs = head_inputs(tmp_path / "out", text)
    hessian = naive.gptq_hessian_update(np.zeros((64, 64)), inputs)
    weight = open_checkpoint(models[False]).tensor("lm_head.weight")
    loss = naive.proxy_loss(weight, layers["lm_head"].dequantize(), hessian)
    np.testing.assert_allclose(own.loss, loss, rtol=1e-2)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert "lm_head" not in config.get("ignore", [])
    assert config.get("lm_head", True)


def test_codes_of_a_head_are_gptqs_own(tmp_path, models, text):
    plain = {"ranges": "full", "full_range": False, "act_order": "none", "shrinkage": 0}
    settings = {**GRID, **ALONE, **plain}
    quantize(models[False], tmp_path / "out", text=[text], lm_head=True, **settings, **SHORT)
    inputs = head_inputs(tmp_path / "out", text)
    hessian = (2 / len(inputs) * inputs.T @ inputs).astype(np.float32)
    weight = open_checkpoint(models[False]).tensor("lm_head.weight")
    alone = gptq(weight, hessian, static_groups=True, **GRID)
    stored = stored_layers(open_checkpoint(tmp_path / "out"))["lm_head"]
    np.testing.assert_array_equal(stored.scales, alone.scales)
    assert (stored.codes == alone.codes).mean() > 0.99
    rounded = proxy_loss(weight, rtn(weight, **GRID), hessian)
    assert proxy_loss(weight, stored, hessian) < 1.01 * proxy_loss(weight, alone, hessian) < rounded


@pytest.mark.parametrize("name", ["mlx", "mlx:mxfp4", "mlx:nvfp4"])
def test_a_tied_head_is_quantized_with_the_embeddings(tmp_path, models, text, name):
    report = quantize(
        models[True],
        tmp_path / "out",
        text=[text],
        formats=[name],
        lm_head=True,
        **grid_in(name),
        **SHORT,
    )
    assert report.layers[-1].name == "model.embed_tokens"
    assert report.layers[-1].loss < report.layers[-1].rtn_loss
    assert "model.embed_tokens" in stored_layers(open_checkpoint(tmp_path / "out"))
    losses = [evaluate(path, [text], **LENGTHS).loss for path in (tmp_path / "out", models[True])]
    assert abs(losses[0] / losses[1] - 1) < 0.1


def test_embeddings_are_rounded(tmp_path, models, text):
    options = {"lm_head": True, "embeddings": True, **GRID, **SHORT}
    report = quantize(
        models[False], tmp_path / "out", text=[text], formats=["mlx"], ranges="full", **options
    )
    methods = {layer.name: layer.method for layer in report.layers[-2:]}
    assert methods == {"lm_head": "gptq", "model.embed_tokens": "rtn"}
    stored = stored_layers(open_checkpoint(tmp_path / "out"))["model.embed_tokens"]
    weight = open_checkpoint(models[False]).tensor("model.embed_tokens.weight")
    assert stored == rtn(weight, **GRID)


def test_rounding_needs_no_text(tmp_path, models):
    quantize(models[False], tmp_path / "out", method="rtn", lm_head=True, **GRID)
    stored = stored_layers(open_checkpoint(tmp_path / "out"))["lm_head"]
    weight = open_checkpoint(models[False]).tensor("lm_head.weight")
    assert stored == rtn(weight, **GRID)


@pytest.mark.parametrize(
    ("tied", "name", "options", "message"),
    [
        (True, "compressed-tensors", {"lm_head": True}, "lm_head: expected formats that store "
         "embeddings quantized, which are the head of this model too, got compressed-tensors"),
        (True, "gptq", {"lm_head": True}, "which are the head of this model too, got gptq"),
        (False, "awq", {"lm_head": True}, "lm_head: expected formats that store a head .* got awq"),
        (False, "nvfp4", {"embeddings": True}, "embeddings: expected formats .* got nvfp4"),
    ],
)  # fmt: skip
def test_what_formats_do_not_store_is_refused(tmp_path, models, tied, name, options, message):
    with pytest.raises(ValueError, match=message):
        quantize(
            models[tied], tmp_path / "out", method="rtn", formats=[name], **grid_in(name), **options
        )
    assert not (tmp_path / "out").exists()
    with pytest.raises(TypeError, match="lm_head: expected a bool, got int"):
        quantize(models[tied], tmp_path / "out", method="rtn", lm_head=1, **GRID)


def test_a_head_needs_the_text_itself(tmp_path, models):
    with pytest.raises(ValueError, match="lm_head: expected a text to calibrate it on"):
        quantize(models[False], tmp_path / "out", statistics=tmp_path, lm_head=True, **GRID)


def test_a_killed_run_goes_on_with_the_head(tmp_path, models, text):
    """The same bytes whether the blocks were finished before or not."""
    options = {"text": [text], "lm_head": True, **GRID, **SHORT}
    quantize(models[False], tmp_path / "whole", **options)

    def fail(name, done, total):
        if "outside" in name:
            raise KeyboardInterrupt

    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        quantize(models[False], tmp_path / "out", work=work, progress=fail, **options)
    report = quantize(models[False], tmp_path / "out", work=work, **options)
    assert report.resumed_blocks == 2
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_the_command_line(tmp_path, models):
    command = ["quantize", models[False], "--method", "rtn", "--lm-head", "--embeddings"]
    command += ["--format", "mlx", "--bits", "4", "lm_head=8", "--group-size", "32"]
    assert main([str(each) for each in (*command, "--output", tmp_path / "out")]) == 0
    found = FORMATS["mlx"].layers(open_checkpoint(tmp_path / "out"))
    assert found["lm_head"].bits == 8
    assert found["model.embed_tokens"].bits == 4
