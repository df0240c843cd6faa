"""GPTQ's and AWQ's own formats: layers by independent unpackers, whole checkpoints, what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from formats.naive_packing import naive_unpack
from hypothesis import given
from hypothesis import strategies as st
from models.tiny import TEXT, write_tiny_checkpoint

from numbacalib.formats import FORMATS, LayerGrid, common_grids, dequantized, stored_format
from numbacalib.methods import QuantizedWeight, rtn
from numbacalib.models import open_checkpoint
from numbacalib.models.checkpoint import TensorInfo
from numbacalib.quantizer import Settings, evaluate, quantize

SCALE_DTYPES = (np.float16, ml_dtypes.bfloat16)
DIRECTORIES = ["compressed-tensors", "gptq", "gptq_v2", "awq", "mlx"]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@st.composite
def layers(draw, bits=(2, 3, 4, 8), least_zero=0, orders=True):
    """Random codes of a layer that the formats take: multiples of 32 rows and channels."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    width, rows = draw(st.sampled_from(bits)), 32 * draw(st.integers(1, 3))
    group_size, groups = draw(st.sampled_from((32, 64))), draw(st.integers(1, 4))
    channels, symmetric = group_size * groups, draw(st.booleans())
    zeros = rng.integers(least_zero, 1 << width, (rows, groups), np.uint8)
    g_idx = None
    if orders and groups > 1 and draw(st.booleans()):
        g_idx = rng.permutation(np.arange(channels) // group_size)
    return QuantizedWeight(
        codes=rng.integers(0, 1 << width, (rows, channels), np.uint8),
        scales=rng.uniform(0.01, 1, (rows, groups)).astype(draw(st.sampled_from(SCALE_DTYPES))),
        zeros=np.full_like(zeros, 1 << (width - 1)) if symmetric else zeros,
        bits=width,
        group_size=group_size,
        symmetric=symmetric,
        g_idx=g_idx,
    )


def grid_of(layer: QuantizedWeight) -> LayerGrid:
    return LayerGrid(layer.bits, layer.group_size, layer.symmetric, layer.scales.dtype)


def values_of(codes, zeros, scales, group_of):
    """What codes [K, M] stand for, with zeros and scales [G, M], as AutoGPTQ has it."""
    return (codes - zeros[group_of]) * scales.astype(np.float32)[group_of]


@pytest.mark.parametrize("version", [1, 2])
@given(data=st.data())
def test_gptq_layers(data, version):
    """An unpacker from the description: codes along K, zeros along M, less 1 in version 1."""
    layer = data.draw(layers(least_zero=2 - version))
    form = FORMATS["gptq" if version == 1 else "gptq_v2"]
    tensors = form.pack(layer)
    rows, channels = layer.codes.shape
    assert sum(tensor.nbytes for tensor in tensors.values()) == form.packed_bytes(
        layer.codes.shape, grid_of(layer)
    )
    codes = naive_unpack(tensors["qweight"].T, layer.bits, channels).T
    zeros = naive_unpack(tensors["qzeros"], layer.bits, rows) + (2 - version)
    assert tensors["g_idx"].dtype == np.int32
    dense = values_of(codes, zeros, tensors["scales"], tensors["g_idx"])
    np.testing.assert_array_equal(dense.T, layer.dequantize())
    assert form.unpack(tensors, grid_of(layer)) == layer


@given(layers(bits=(4,), orders=False))
def test_awq_layers(layer):
    """An unpacker from the description: 8 rows a word, interleaved."""
    form = FORMATS["awq"]
    tensors = form.pack(layer)
    assert sum(tensor.nbytes for tensor in tensors.values()) == form.packed_bytes(
        layer.codes.shape, grid_of(layer)
    )

    def unpacked(words):
        found = np.empty((len(words), 8 * words.shape[1]), int)
        for i, row in enumerate(AWQ_ORDER):
            found[:, row::8] = (words.view(np.uint32) >> (4 * i)) & 15
        return found

    group_of = np.arange(layer.codes.shape[1]) // layer.group_size
    codes, zeros = unpacked(tensors["qweight"]), unpacked(tensors["qzeros"])
    dense = values_of(codes, zeros, tensors["scales"], group_of)
    np.testing.assert_array_equal(dense.T, layer.dequantize())
    assert form.unpack(tensors, grid_of(layer)) == layer


def small_layer(**settings) -> QuantizedWeight:
    weight = np.random.default_rng(1).standard_normal((32, 96)).astype(np.float32)
    return rtn(weight, **({"bits": 4, "group_size": 32, "symmetric": False} | settings))


def test_what_a_layer_of_these_formats_cannot_hold():
    layer = small_layer()
    zeros = layer.zeros.copy()
    zeros[3, 1] = 0
    with pytest.raises(ValueError, match="zeros: expected at least 1 in gptq, got 0"):
        FORMATS["gptq"].pack(replace(layer, zeros=zeros))
    real = replace(layer, zeros=layer.zeros.astype(np.float32))
    for name in ("gptq", "gptq_v2", "awq", "compressed-tensors"):
        with pytest.raises(ValueError, match="zeros: expected integers"):
            FORMATS[name].pack(real)
    with pytest.raises(ValueError, match="g_idx: expected None, AWQ has no groups out of order"):
        FORMATS["awq"].pack(replace(layer, g_idx=np.arange(96)[::-1] // 32))


@pytest.mark.parametrize("name", ["gptq", "gptq_v2", "awq"])
@pytest.mark.parametrize(
    ("part", "damage", "message"),
    [
        ("qweight", lambda _: None, "qweight: expected a tensor of this name"),
        ("qzeros", lambda t: t[1:], "qzeros: expected int32"),
        ("scales", lambda t: t.astype(int), "scales: expected float16"),
        ("scales", lambda t: t[:, :8], "scales: expected .3, 32., got"),
        ("qweight", lambda t: t[:5], "qweight: expected (4-bit )?codes in groups of 32, got"),
        ("qweight", lambda t: t.view(np.float32), "qweight: expected int32"),
    ],
)
def test_damaged_layers(name, part, damage, message):
    layer = small_layer()
    tensors = FORMATS[name].pack(layer)
    damaged = damage(tensors.pop(part))
    if damaged is not None:
        tensors[part] = damaged
    with pytest.raises(ValueError, match=message):
        FORMATS[name].unpack(tensors, grid_of(layer))


def test_a_zero_that_runtimes_read_in_two_ways_is_refused():
    """Stored 15 in version 1: 16 for some, 0 for others."""
    tensors = FORMATS["gptq"].pack(small_layer())
    tensors["qzeros"] |= np.int32(15)
    with pytest.raises(ValueError, match="qzeros: expected zeros less 1 in version 1, got 15"):
        FORMATS["gptq"].unpack(tensors, grid_of(small_layer()))
    tensors["g_idx"][5] = 3
    with pytest.raises(ValueError, match="g_idx: expected 0 to 2, got 0 to 3"):
        FORMATS["gptq_v2"].unpack(tensors, grid_of(small_layer()))


WEIGHTS = {"q": TensorInfo((64, 64), np.dtype(np.float32))}


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("gptq", {"bits": 5}, "bits: expected 2, 3, 4 or 8, got 5"),
        ("awq", {"bits": 3}, "bits: expected 4, got 3"),
        ("gptq", {"group_size": 48}, "group_size: expected 16, .* 1024 or none, got 48"),
        ("awq", {"group_size": 16}, "group_size: expected 32, 64, 128 or none, got 16"),
        ("awq", {"g_idx": True}, "act_order: expected static_groups with 'desc'"),
        ("gptq", {"g_idx": True}, "act_order: expected static_groups .* or gptq_v2"),
    ],
)
def test_grids_that_are_refused_with_what_would_do(name, asked, message):
    grid = replace(LayerGrid(4, 32, False, np.dtype(np.float32)), **asked)
    with pytest.raises(ValueError, match=message):
        FORMATS[name].grids(WEIGHTS, {"q": grid})


def test_shapes_that_are_refused():
    asked = {"q": LayerGrid(4, 32, False, np.dtype(np.float32))}
    for shape, message in (((60, 64), "q: expected M a mul.* 32, got 60"), ((64, 48), "K a mult")):
        with pytest.raises(ValueError, match=message):
            FORMATS["gptq"].grids({"q": TensorInfo(shape, np.dtype(np.float32))}, asked)


def test_formats_agree_on_a_grid_or_say_why_not():
    half = {"q": TensorInfo((64, 64), np.dtype(np.float16))}
    asked = {"q": LayerGrid(4, 32, True, np.dtype(np.float16))}
    every = [FORMATS[name] for name in DIRECTORIES]
    assert common_grids(every, half, asked) == asked
    asymmetric = {"q": replace(asked["q"], symmetric=False)}
    # version 1 lacks the zero of 0, which the others can do without
    two = [FORMATS["gptq_v2"], FORMATS["gptq"]]
    assert common_grids(two, half, asymmetric) == FORMATS["gptq"].grids(half, asymmetric)
    with pytest.raises(
        ValueError, match=r"grids agree, q would have .*float32 in compressed-t.*: q"
    ):
        common_grids([FORMATS["compressed-tensors"], FORMATS["awq"]], WEIGHTS, asked)


def test_groups_without_negative_weights_have_a_zero_of_1(tmp_path):
    """Version 1 has no zero of 0; codes are chosen on the grid that it has."""
    model = write_tiny_checkpoint(tmp_path / "model", dtype="float16")
    from safetensors.numpy import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    tensors[f"{name}.weight"] = abs(tensors[f"{name}.weight"])
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    settings = Settings(method="rtn", bits=4, group_size=32)
    quantize(model, tmp_path / "out", settings=settings, formats=["gptq"])
    checkpoint = open_checkpoint(tmp_path / "out")
    layer = stored_format(checkpoint).layers(checkpoint)[name]
    assert (layer.zeros == 1).all()
    assert layer.codes.min() >= 1
    error = abs(layer.dequantize() - tensors[f"{name}.weight"].astype(np.float32))
    steps = layer.scales.astype(np.float32)[:, layer.group_of]
    assert (error <= 1.01 * steps).all()  # half a step, but one at the end that was lost


ONE_SOLVE = [
    ({"bits": 4, "group_size": 32, "symmetric": True}, DIRECTORIES),
    ({"bits": 3, "symmetric": True, "group_size": None}, ["gptq", "gptq_v2", "compressed-tensors"]),
    ({"bits": 8, "group_size": 32, "act_order": "desc", "static_groups": False}, ["gptq_v2"]),
]


@pytest.mark.parametrize(("settings", "names"), ONE_SOLVE)
def test_one_solve_in_several_formats(tmp_path, settings, names):
    model = write_tiny_checkpoint(tmp_path / "model", dtype="float16")
    (tmp_path / "text.txt").write_text(TEXT * 10, encoding="utf-8")
    output, text = tmp_path / "out", [tmp_path / "text.txt"]
    settings = Settings(samples=4, sequence_length=32, **settings)
    quantize(model, output, text=text, settings=settings, formats=names)
    directories = [output / name for name in names] if names[1:] else [output]
    found = []
    for name, directory in zip(names, directories, strict=True):
        checkpoint = open_checkpoint(directory)
        form = stored_format(checkpoint)
        assert form.name == name
        found.append(dict(form.layers(checkpoint)))
        assert all(found[0][layer] == found[-1][layer] for layer in found[0])
        assert all(layer.bits == settings.bits for layer in found[-1].values())
        loss = evaluate(directory, text, sequence_length=32, samples=4).loss
        assert math.isclose(loss, 6, abs_tol=1)
        assert dequantized(checkpoint).config == open_checkpoint(model).config
    assert len(found[0]) == 14


def test_a_configuration_that_is_not_understood(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "model", dtype="float16")
    settings = Settings(method="rtn", bits=4, group_size=32)
    for name, changes in {
        "gptq": {"bits": 5, "checkpoint_format": "marlin", "dynamic": {"+:q": {"bits": 8}}, "x": 1},
        "awq": {"bits": 8, "version": "gemv", "zero_point": False, "x": 1, "group_size": 0},
    }.items():
        quantize(model, tmp_path / name, settings=settings, formats=[name])
        config = json.loads((tmp_path / name / "config.json").read_text())
        for key, value in changes.items():
            changed = config["quantization_config"] | {key: value}
            text = json.dumps(config | {"quantization_config": changed})
            (tmp_path / name / "config.json").write_text(text)
            with pytest.raises(ValueError, match=rf"config.json: quantization_config\.{key}: exp"):
                dequantized(open_checkpoint(tmp_path / name))
