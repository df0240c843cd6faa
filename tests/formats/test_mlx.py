"""MLX's affine format: layers by an unpacker from the description, whole checkpoints, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from formats.naive_packing import naive_unpack
from hypothesis import given
from hypothesis import strategies as st
from models.described import write_described_checkpoint
from models.tiny import TEXT, write_tiny_checkpoint

from numbacalib.formats import FORMATS, LayerGrid, common_grids, dequantized, stored_format
from numbacalib.formats.grid_finders import StoredBiases
from numbacalib.methods import LayerSettings, QuantizedWeight, quantize_layer
from numbacalib.models import open_checkpoint
from numbacalib.models.checkpoint import TensorInfo
from numbacalib.quantizer import Settings, evaluate, quantize
from numbacalib.statistics import InputStatistics

FORMAT = FORMATS["mlx"]
DTYPES = (np.float16, ml_dtypes.bfloat16)


@st.composite
def layers(draw):
    """Random codes with biases as they are stored: zeros are real, or the middle."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    bits, rows = draw(st.sampled_from((2, 3, 4, 5, 6, 8))), draw(st.integers(1, 9))
    size, groups = draw(st.sampled_from((32, 64, 128))), draw(st.integers(1, 3))
    dtype, symmetric = draw(st.sampled_from(DTYPES)), draw(st.booleans())
    scales = rng.uniform(0.01, 1, (rows, groups)).astype(dtype)
    scales[rng.random(scales.shape) < 0.3] *= dtype(-1)
    biases = rng.uniform(-9, 9, scales.shape).astype(dtype).astype(np.float32)
    middle = np.full(scales.shape, 1 << (bits - 1), np.uint8)
    return QuantizedWeight(
        codes=rng.integers(0, 1 << bits, (rows, size * groups), np.uint8),
        scales=scales,
        zeros=middle if symmetric else -biases / scales.astype(np.float32),
        bits=bits,
        group_size=size,
        symmetric=symmetric,
    )


def grid_of(layer: QuantizedWeight) -> LayerGrid:
    return LayerGrid(layer.bits, layer.group_size, False, layer.scales.dtype)


@given(layers())
def test_layers(layer):
    tensors = FORMAT.pack(layer)
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert size == FORMAT.packed_bytes(layer.codes.shape, grid_of(layer))
    codes = naive_unpack(tensors["weight"], layer.bits, layer.codes.shape[1])
    scales, biases = (
        np.repeat(tensors[part].astype(np.float64), layer.group_size, 1)
        for part in ("scales", "biases")
    )
    dense = scales * codes + biases
    largest = abs(dense).max()
    np.testing.assert_allclose(layer.dequantize(), dense, rtol=0, atol=1e-6 * largest)
    read = FORMAT.unpack(tensors, grid_of(layer))
    assert read == layer
    again = FORMAT.pack(read)
    for part, tensor in tensors.items():
        np.testing.assert_array_equal(again[part], tensor, strict=True)


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_are_chosen_on_the_biases_that_are_stored(dtype, method):
    """With rtn each code is the nearest; with gptq the loss is no worse than with biases unrounded."""
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((16, 64)).astype(np.float32)
    statistics = InputStatistics(64)
    statistics.update(rng.standard_normal((256, 64)).astype(np.float32))
    settings = LayerSettings(
        method=method, bits=3, group_size=32, scale_dtype=dtype, find_grid=StoredBiases()
    )
    layer, report = quantize_layer("q", weight, statistics, settings)
    read = FORMAT.unpack(FORMAT.pack(layer), grid_of(layer))
    assert read == layer
    assert report.loss <= 1.05 * report.rtn_loss
    if method == "rtn":
        scales = np.repeat(layer.scales.astype(np.float64), 32, 1)
        zeros = np.repeat(layer.zeros.astype(np.float64), 32, 1)
        points = (np.arange(8) - zeros[..., None]) * scales[..., None]
        nearest = abs(points - weight[..., None].astype(np.float64)).min(axis=-1)
        error = abs(layer.dequantize().astype(np.float64) - weight)
        np.testing.assert_allclose(error, nearest, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scales_and_biases_are_refitted_as_they_are_stored(dtype):
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((16, 64)).astype(np.float32)
    statistics = InputStatistics(64)
    mixed = rng.standard_normal((64, 64)).astype(np.float32) + 0.2
    statistics.update(rng.standard_normal((256, 64)).astype(np.float32) @ mixed)
    settings = LayerSettings(
        bits=3, group_size=32, scale_dtype=dtype, find_grid=StoredBiases(), refit=True
    )
    layer, report = quantize_layer("q", weight, statistics, settings)
    assert FORMAT.unpack(FORMAT.pack(layer), grid_of(layer)) == layer
    _, before = quantize_layer("q", weight, statistics, replace(settings, refit=False))
    assert report.loss < 0.99 * before.loss


def test_what_changes_a_grid_that_is_fixed_is_refused():
    fixed = LayerSettings(find_grid=StoredBiases())
    for changes, message in (
        ({"method": "rtn", "ranges": "clip"}, "ranges: expected full, mse or weighted where"),
        ({"act_order": "group_aware"}, "static_groups: expected True where the format"),
        ({"method": "kmeans"}, "method: expected gptq or rtn where the format fixes the grid"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(fixed, **changes).check()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"bits": 7}, "bits: expected 2, 3, 4, 5, 6 or 8, got 7"),
        ({"group_size": 16}, "group_size: expected 32, 64 or 128, got 16"),
        ({"group_size": None}, "group_size: expected 32, 64 or 128, got one scale a row"),
        ({"g_idx": True}, "act_order: expected static_groups"),
    ],
)
def test_grids_that_are_refused(asked, message):
    grid = replace(LayerGrid(4, 32, False, np.dtype(np.float16)), **asked)
    with pytest.raises(ValueError, match=message):
        FORMAT.grids({"q": TensorInfo((64, 128), np.dtype(np.float16))}, {"q": grid})


def test_no_length_of_groups_divides():
    weights = {"q": TensorInfo((64, 80), np.dtype(np.float16))}
    with pytest.raises(
        ValueError, match="64 does not divide K = 80, and no .*: use another format"
    ):
        FORMAT.grids(weights, {"q": LayerGrid(4, 64, False, np.dtype(np.float16))})


@pytest.mark.parametrize("form", ["mlx", "mlx:mxfp4", "mlx:nvfp4"])
def test_what_files_hold_transposed_is_refused(tmp_path, form):
    source = write_described_checkpoint(tmp_path / "model", "gpt2")
    with pytest.raises(
        ValueError, match="format: expected one whose clients load a quantized gpt2"
    ):
        quantize(source, tmp_path / "out", settings=Settings(method="rtn"), formats=[form])
    assert not (tmp_path / "out").exists()


def test_integer_and_real_zeros_do_not_agree():
    weights = {"q": TensorInfo((64, 64), np.dtype(np.float16))}
    asked = {"q": LayerGrid(4, 32, False, np.dtype(np.float16))}
    with pytest.raises(ValueError, match="q would have .* and .* as the format fixes it in mlx"):
        common_grids([FORMATS["gptq_v2"], FORMAT], weights, asked)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_model(tmp_path, symmetric):
    model = write_tiny_checkpoint(tmp_path / "model", dtype="bfloat16")
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 10, encoding="utf-8")
    settings = Settings(bits=3, group_size=64, symmetric=symmetric, samples=4, sequence_length=32)
    quantize(model, tmp_path / "out", text=[text], settings=settings, formats=["mlx"])
    checkpoint = open_checkpoint(tmp_path / "out")
    assert stored_format(checkpoint) is FORMAT
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"] == config["quantization_config"]
    assert {key: config["quantization"][key] for key in ("group_size", "bits", "mode")} == {
        "group_size": 64,
        "bits": 3,
        "mode": "affine",
    }
    found = FORMAT.layers(checkpoint)
    sizes = {layer.group_size for layer in found.values()}
    assert sizes == {64, 32}  # K is 64 and 96
    assert all(layer.symmetric == symmetric for layer in found.values())
    plain = dequantized(checkpoint)
    assert set(plain.names()) == set(open_checkpoint(model).names())
    assert evaluate(tmp_path / "out", [text], sequence_length=32, samples=4).loss < 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 7}, "quantization.bits: expected one of 2, 3, 4, 5, 6, 8, got 7"),
        ({"mode": "mxfp8"}, "quantization.mode: expected affine, got 'mxfp8'"),
        ({"x": 1}, "quantization.x: expected no key"),
        ({"model.layers.0.self_attn.q_proj": 1}, "q_proj: expected an object"),
        ({"model.layers.0.self_attn.q_proj": {"bits": 4}}, "q_proj.group_size: expected one of"),
    ],
)
def test_a_configuration_that_is_not_understood(tmp_path, changes, message):
    model = write_tiny_checkpoint(tmp_path / "model", dtype="float16", intermediate_size=64)
    settings = Settings(method="rtn", bits=4, group_size=32)
    quantize(model, tmp_path / "out", settings=settings, formats=["mlx"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["quantization"] |= changes
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"config.json: .*{message}"):
        dequantized(open_checkpoint(tmp_path / "out"))


@pytest.mark.parametrize(
    ("part", "damage", "message"),
    [
        ("weight", lambda t: t[:, :3], "weight: expected 4-bit codes in groups of 32"),
        ("weight", lambda t: t.view(np.int32), "weight: expected uint32"),
        ("scales", lambda t: t[:, :1], "scales: expected .8, 2., got"),
        ("scales", lambda t: 0 * t, "scales: expected numbers other than 0"),
        ("biases", lambda t: t.astype(np.float64), "biases: expected float16"),
    ],
)
def test_damaged_layers(part, damage, message):
    rng = np.random.default_rng(0)
    layer = QuantizedWeight(
        rng.integers(0, 16, (8, 64), np.uint8),
        rng.uniform(0.1, 1, (8, 2)).astype(np.float16),
        np.full((8, 2), 8, np.uint8),
        4,
        32,
        symmetric=True,
    )
    tensors = FORMAT.pack(layer)
    tensors[part] = damage(tensors[part])
    with pytest.raises(ValueError, match=message):
        FORMAT.unpack(tensors, grid_of(layer))
