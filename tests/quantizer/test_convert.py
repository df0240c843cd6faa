"""Quantized checkpoints made into other formats: the same weights, or a reason."""

from __future__ import annotations

import json
import logging

import ml_dtypes
import numpy as np
import pytest
from models.tiny import write_tiny_checkpoint

from numbacalib.cli import main
from numbacalib.formats import FORMATS, LayerGrid, dequantized, stored_format
from numbacalib.formats.registry import stored_layers
from numbacalib.methods import rtn
from numbacalib.models import open_checkpoint
from numbacalib.quantizer import Settings, convert, quantize, verify

NAMES = ("compressed-tensors", "gptq", "gptq_v2", "awq", "mlx")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A tiny model, and what it is quantized to, made when it is asked for."""
    directory = tmp_path_factory.mktemp("sources")
    model = write_tiny_checkpoint(directory / "model", dtype="float16", intermediate_size=128)
    made = {}

    def source(name, **settings):
        key = f"{name}{settings}"
        if key not in made:
            made[key] = directory / str(len(made))
            asked = Settings(**({"method": "rtn", "bits": 4, "group_size": 32} | settings))
            quantize(model, made[key], settings=asked, formats=[name], device="cpu")
        return made[key]

    return source


def assert_same(one, other):
    """Every tensor of the plain models that they stand for."""
    left, right = (dequantized(open_checkpoint(path)) for path in (one, other))
    assert set(left.names()) == set(right.names())
    for name in left.names():
        np.testing.assert_array_equal(left.tensor(name), right.tensor(name), strict=True)


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("source", NAMES)
def test_symmetric_layers_go_from_any_format_to_any(tmp_path, sources, source, target):
    model = sources(source, symmetric=True)
    grids = convert(model, tmp_path / "out", to=target)
    assert {(grid.bits, grid.group_size) for grid in grids.values()} == {(4, 32)}
    assert stored_format(open_checkpoint(tmp_path / "out")).name == target
    assert_same(model, tmp_path / "out")
    proof = verify(tmp_path / "out", against=model)  # quantized itself
    assert proof.quantized == 14
    assert not proof.changed


@pytest.mark.parametrize("target", ["compressed-tensors", "gptq", "gptq_v2", "awq"])
@pytest.mark.parametrize("source", ["gptq", "awq", "compressed-tensors"])
def test_integer_zeros(tmp_path, sources, source, target):
    model = sources(source, symmetric=False)
    convert(model, tmp_path / "out", to=target)
    assert_same(model, tmp_path / "out")


@pytest.mark.parametrize("size", [None, 64])
def test_long_groups_are_cut(tmp_path, sources, size):
    model = sources("gptq", symmetric=True, group_size=size)
    grids = convert(model, tmp_path / "out", to="mlx")
    sizes = {layer.rpartition(".")[2]: grid.group_size for layer, grid in grids.items()}
    assert sizes["down_proj"] == (128 if size is None else size)
    assert_same(model, tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "settings", "target", "message"),
    [
        (
            "compressed-tensors",
            {"bits": 5, "symmetric": True},
            "gptq",
            "bits: expected 2, 3, 4 or 8",
        ),
        ("mlx", {"symmetric": False}, "gptq_v2", "zeros: expected integers in this format"),
        (
            "gptq",
            {"symmetric": True, "group_size": 16},
            "mlx",
            "group_size: expected 32, 64 or 128",
        ),
        ("mlx", {"bits": 6, "symmetric": True}, "awq", "bits: expected 4, got 6"),
    ],
)
def test_what_cannot_go_is_refused(tmp_path, sources, source, settings, target, message):
    model = sources(source, **settings)
    with pytest.raises(ValueError, match=message):
        convert(model, tmp_path / "out", to=target)
    assert not (tmp_path / "out").exists()


def test_integer_zeros_whose_bias_would_round(tmp_path, sources):
    """Zeros times float16 scales have more digits than float16."""
    with pytest.raises(ValueError, match=r"mlx cannot hold it without loss"):
        convert(sources("gptq_v2", symmetric=False, bits=8), tmp_path / "out", to="mlx")
    assert not (tmp_path / "out").exists()


def test_groups_out_of_order(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "model", dtype="float16", intermediate_size=128)
    (tmp_path / "text.txt").write_text("one two three four five six " * 60, encoding="utf-8")
    settings = Settings(
        bits=4,
        group_size=32,
        symmetric=True,
        act_order="desc",
        static_groups=False,
        samples=4,
        sequence_length=16,
    )
    text = [tmp_path / "text.txt"]
    quantize(model, tmp_path / "q", text=text, settings=settings, formats=["gptq"], device="cpu")
    convert(tmp_path / "q", tmp_path / "out", to="gptq_v2")
    assert_same(tmp_path / "q", tmp_path / "out")
    for target in ("awq", "compressed-tensors", "mlx"):
        with pytest.raises(ValueError, match="since the file format has no g_idx"):
            convert(tmp_path / "q", tmp_path / "other", to=target)


def test_embeddings_that_a_format_does_not_hold(tmp_path, caplog):
    """mlx-lm quantizes embeddings and heads: they become float32 where the format has none."""
    source = open_checkpoint(write_tiny_checkpoint(tmp_path / "model", dtype="float16"))
    form, half = FORMATS["mlx"], np.dtype(np.float16)
    layers = [name.removesuffix(".weight") for name in source.names() if "_proj.w" in name]
    layers += ["model.embed_tokens", "lm_head"]
    grids = dict.fromkeys(layers, LayerGrid(4, 32, True, half))
    (tmp_path / "q").mkdir()
    with form.writer(tmp_path / "q", source, grids) as writer:
        for layer in layers:
            weight = source.tensor(f"{layer}.weight")
            writer.add_layer(layer, rtn(weight, bits=4, group_size=32, symmetric=True))
    with caplog.at_level(logging.WARNING):
        found = convert(tmp_path / "q", tmp_path / "out", to="gptq")
    assert [line for line in caplog.messages if "float32" in line] == [
        "model.embed_tokens: written as float32, since gptq does not hold it"
    ]
    assert "lm_head" in found
    assert_same(tmp_path / "q", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["lm_head"] is True


@pytest.mark.parametrize("mix", ["Q8_0", "Q4_0"])
def test_gguf_files_go_where_their_blocks_fit(tmp_path, mix):
    model = write_tiny_checkpoint(tmp_path / "model", dtype=str(np.dtype(np.float32)))
    source = open_checkpoint(model)
    form = FORMATS[f"gguf:{mix}"].of_model(source.config)
    layers = [name.removesuffix(".weight") for name in source.names() if "_proj.w" in name]
    weights = {layer: source.info(f"{layer}.weight") for layer in layers}
    asked = dict.fromkeys(layers, LayerGrid(4, 32, True, np.dtype(np.float32)))
    grids = form.grids(weights, asked)
    (tmp_path / "q").mkdir()
    with form.writer(tmp_path / "q", source, grids) as writer:
        for layer, grid in grids.items():
            weight = source.tensor(f"{layer}.weight")
            options = {"bits": grid.bits, "group_size": grid.group_size, "symmetric": True}
            plain = rtn(weight, scale_dtype=np.float16, **options)
            scales = plain.scales.astype(np.float32)
            writer.add_layer(layer, rtn(weight, scale_dtype=np.float32, scales=scales, **options))
    file = form.opened_at(tmp_path / "q")
    convert(file, tmp_path / "out", to="compressed-tensors")
    stored = stored_layers(open_checkpoint(file))
    written = stored_layers(open_checkpoint(tmp_path / "out"))
    assert set(written) >= set(layers)
    for layer in written:
        np.testing.assert_array_equal(written[layer].dequantize(), stored[layer].dequantize())


def test_the_command_line(tmp_path, sources, capsys):
    model = sources("gptq", symmetric=True)
    command = ["convert", str(model), "--format"]
    assert main([*command, "awq", "--output", str(tmp_path / "out")]) == 0
    assert "14 layers written to" in capsys.readouterr().out
    assert main([*command, "nothing", "--output", str(tmp_path / "other")]) == 2
    assert "format: expected compressed-tensors, mxfp4, nvfp4, gptq" in capsys.readouterr().err


def test_a_plain_model_is_refused(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "model")
    with pytest.raises(ValueError, match="model: expected a quantized checkpoint, got an unqu"):
        convert(model, tmp_path / "out", to="gptq")


def test_bfloat16_scales(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "model", dtype="bfloat16")
    settings = Settings(method="rtn", bits=4, group_size=32, symmetric=True)
    quantize(model, tmp_path / "q", settings=settings, formats=["compressed-tensors"], device="cpu")
    for target in ("gptq", "mlx"):
        convert(tmp_path / "q", tmp_path / target, to=target)
        assert_same(tmp_path / "q", tmp_path / target)
        layers = stored_layers(open_checkpoint(tmp_path / target))
        assert next(iter(layers.values())).scales.dtype == ml_dtypes.bfloat16
