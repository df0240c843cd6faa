"""FP4 formats: layers by an unpacker from the descriptions, whole checkpoints, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import gguf
import ml_dtypes
import naive_fp4
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models.tiny import TEXT, write_tiny_checkpoint

from numbacalib.formats import FORMATS, LayerGrid, common_grids, dequantized, stored_format
from numbacalib.formats.gguf_mxfp4 import pack_mxfp4, unpack_mxfp4
from numbacalib.formats.registry import stored_layers
from numbacalib.methods import QuantizedWeight, rtn
from numbacalib.models import open_checkpoint
from numbacalib.models.checkpoint import TensorInfo
from numbacalib.quantizer import Settings, convert, evaluate, quantize

NAMES = ("nvfp4", "mxfp4", "mlx:nvfp4", "mlx:mxfp4")
SIZES = {"nvfp4": 16, "mxfp4": 32}


def kind_of(name):
    return name.rpartition(":")[2]


def random_layer(seed, rows, groups, kind, divisor):
    """Random codes and scales; codes of 0 have either sign."""
    rng = np.random.default_rng(seed)
    values = np.array(naive_fp4.scale_codes(kind), np.float32)
    first, last = (60, 200) if kind == "mxfp4" else (1, 127)
    scales = values[rng.integers(first, last, (rows, groups))]
    return QuantizedWeight(
        codes=rng.integers(0, 16, (rows, SIZES[kind] * groups), np.uint8),
        scales=scales if divisor is None else scales / np.float32(divisor),
        zeros=np.zeros((rows, groups), np.uint8),
        bits=4,
        group_size=SIZES[kind],
        symmetric=True,
        element="e2m1",
        global_scale=divisor,
    )


@st.composite
def stored(draw):
    """The name of a format and a layer that it holds."""
    name = draw(st.sampled_from(NAMES))
    sizes = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    divisor = None
    if name == "nvfp4":
        divisor = float(np.float32(draw(st.floats(1e-3, 1e5))))
    return name, random_layer(draw(st.integers(0, 99)), *sizes, kind_of(name), divisor)


def naive_values(name, tensors):
    """Weights in float64, byte by byte from the tensors."""
    packed = tensors["weight_packed" if ":" not in name else "weight"].view(np.uint8)
    scales = tensors["weight_scale" if ":" not in name else "scales"].view(np.uint8)
    numbers = naive_fp4.scale_codes(kind_of(name))
    divisor = float(tensors["weight_global_scale"][0]) if "weight_global_scale" in tensors else 1
    size = SIZES[kind_of(name)]
    values = np.empty((len(packed), 2 * packed.shape[1]))
    for i, j in np.ndindex(values.shape):
        byte = int(packed[i, j // 2])
        code = byte % 16 if j % 2 == 0 else byte // 16
        values[i, j] = naive_fp4.point(code) * numbers[scales[i, j // size]] / divisor
    return values


@given(stored())
def test_layers(item):
    name, layer = item
    form = FORMATS[name]
    tensors = form.pack(layer)
    (grid,) = form.grids(
        {"q": TensorInfo(layer.codes.shape, np.dtype(np.float32))},
        {"q": LayerGrid(4, 128, False, np.dtype(np.float32))},
    ).values()
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert size == form.packed_bytes(layer.codes.shape, grid)
    np.testing.assert_allclose(layer.dequantize(), naive_values(name, tensors), rtol=1e-6)
    read = form.unpack(tensors, grid)
    assert read == layer
    again = form.pack(read)
    assert again.keys() == tensors.keys()
    for part, tensor in tensors.items():
        np.testing.assert_array_equal(again[part], tensor, strict=True)


@given(st.integers(0, 99), st.integers(1, 5), st.integers(1, 4))
def test_blocks_of_ggml(seed, rows, groups):
    layer = random_layer(seed, rows, groups, "mxfp4", None)
    stored = pack_mxfp4(layer)
    assert stored.shape == (rows, 17 * groups)
    assert unpack_mxfp4(stored) == layer
    theirs = gguf.dequantize(stored, gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(theirs, layer.dequantize())


def test_a_gguf_file(tmp_path, model, text):
    """Layers of blocks on the grid, the head and the embeddings in 8 bits; into other formats and back."""
    report = quantize(model, tmp_path / "out", text=[text], formats=["gguf:MXFP4"], **SHORT)
    assert all(layer.loss < layer.rtn_loss for layer in report.layers[:7])
    file = tmp_path / "out" / "model-MXFP4.gguf"
    reader = gguf.GGUFReader(file)
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert {types[name] for name in types if "ffn" in name and "norm" not in name} == {"MXFP4"}
    assert types["token_embd.weight"] == types["output.weight"] == "Q8_0"
    layers = stored_layers(open_checkpoint(file))
    for name, layer in layers.items():
        if name.startswith("model.layers."):
            assert layer.element == "e2m1"
            stored = open_checkpoint(file).tensor(f"{name}.weight")
            np.testing.assert_array_equal(stored, layer.dequantize())
    assert evaluate(file, [text], **SHORT).loss < 7
    convert(file, tmp_path / "mxfp4", to="mxfp4")
    for name, layer in stored_layers(open_checkpoint(tmp_path / "mxfp4")).items():
        assert layer == layers[name]


def test_types_of_the_tensors():
    tensors = FORMATS["nvfp4"].pack(random_layer(1, 4, 2, "nvfp4", 300.0))
    kinds = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    assert kinds == {
        "weight_packed": (np.uint8, (4, 16)),
        "weight_scale": (ml_dtypes.float8_e4m3fn, (4, 2)),
        "weight_global_scale": (np.float32, (1,)),
    }
    tensors = FORMATS["mxfp4"].pack(random_layer(1, 4, 2, "mxfp4", None))
    kinds = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    assert kinds == {"weight_packed": (np.uint8, (4, 32)), "weight_scale": (np.uint8, (4, 2))}


@pytest.mark.parametrize("name", NAMES)
def test_what_a_layer_may_not_be(name):
    form, kind = FORMATS[name], kind_of(name)
    layer = random_layer(2, 4, 2, kind, 2.0 if name == "nvfp4" else None)
    weight = np.ones((4, 64), np.float32)
    for other, message in (
        (rtn(weight, bits=4, group_size=SIZES[kind]), "codes: expected e2m1 in this format, got"),
        (replace(layer, g_idx=np.zeros(1, np.int64)), "g_idx: expected None"),
        (replace(layer, group_size=8), f"group_size: expected {SIZES[kind]}, got 8"),
        (replace(layer, scales=layer.scales * 1.01), f"scales: expected those that {kind} stores"),
    ):
        with pytest.raises(ValueError, match=message):
            form.pack(other)
    with pytest.raises(ValueError, match="codes: expected integers"):
        FORMATS["compressed-tensors"].grids(
            {"q": TensorInfo((4, 64), np.dtype(np.float32))},
            {"q": LayerGrid(4, 32, True, np.dtype(np.float32), element="e2m1")},
        )


@pytest.mark.parametrize("name", NAMES)
def test_grids_that_are_refused(name):
    weights = {"q": TensorInfo((8, 72), np.dtype(np.float16))}
    asked = {"q": LayerGrid(4, 128, False, np.dtype(np.float16))}
    size = SIZES[kind_of(name)]
    with pytest.raises(ValueError, match=f"q: expected K a multiple of {size}, got 72"):
        FORMATS[name].grids(weights, asked)
    three = {"q": replace(asked["q"], bits=3)}
    with pytest.raises(ValueError, match="bits: expected 4, got 3"):
        FORMATS[name].grids(weights, three)
    with pytest.raises(ValueError, match="bits: expected 4, got 3"):
        FORMATS[name].check(three["q"])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("m") / "model", dtype="bfloat16")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("t") / "text.txt"
    file.write_text(TEXT * 10, encoding="utf-8")
    return file


SHORT = {"samples": 4, "sequence_length": 32}


@pytest.mark.parametrize("name", NAMES)
def test_a_model(tmp_path, model, text, name):
    report = quantize(model, tmp_path / "out", text=[text], formats=[name], **SHORT)
    assert sum(layer.loss for layer in report.layers) < sum(
        layer.rtn_loss for layer in report.layers
    )
    checkpoint = open_checkpoint(tmp_path / "out")
    assert stored_format(checkpoint) is FORMATS[name]
    plain = dequantized(checkpoint)
    assert set(plain.names()) == set(open_checkpoint(model).names())
    assert evaluate(tmp_path / "out", [text], **SHORT).loss < 7
    layers = stored_layers(checkpoint)
    assert all(layer.element == "e2m1" for layer in layers.values())
    if name == "nvfp4":
        scales = {layer: found.global_scale for layer, found in layers.items()}
        for stage in (("self_attn", "qkv"), ("mlp", ("gate", "up"))):
            joined = {scales[f"model.layers.0.{stage[0]}.{part}_proj"] for part in stage[1]}
            assert len(joined) == 1  # runtimes join these layers
        assert len(set(scales.values())) > 4


def test_a_search_by_blocks_of_the_hessian_loses_less(tmp_path, model, text):
    losses = {}
    for ranges in ("full", "weighted"):
        report = quantize(
            model, tmp_path / ranges, text=[text], formats=["nvfp4"], ranges=ranges, **SHORT
        )
        losses[ranges] = sum(layer.loss for layer in report.layers)
    assert losses["weighted"] < 0.95 * losses["full"]


def test_two_formats_from_one_solve_and_one_into_another(tmp_path, model):
    both = ["mxfp4", "mlx:mxfp4"]
    settings = Settings(method="rtn")
    quantize(model, tmp_path / "both", settings=settings, formats=both)
    convert(tmp_path / "both" / "mxfp4", tmp_path / "out", to="mlx:mxfp4")
    stored = [stored_layers(open_checkpoint(tmp_path / "both" / name)) for name in both]
    stored.append(stored_layers(open_checkpoint(tmp_path / "out")))
    for layer, weight in stored[0].items():
        assert weight == stored[1][layer] == stored[2][layer]


def test_what_cannot_go_is_refused(tmp_path, model):
    settings = Settings(method="rtn")
    quantize(model, tmp_path / "nvfp4", settings=settings, formats=["nvfp4"])
    for target, message in (
        ("mlx:nvfp4", "global_scale: expected 1, MLX stores none"),
        ("mxfp4", "would be on 4 bits of e2m1, symmetric, groups of 32"),
        ("compressed-tensors", "codes: expected integers, got e2m1"),
        ("gptq", "codes: expected integers, got e2m1"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(tmp_path / "nvfp4", tmp_path / "out", to=target)
        assert not (tmp_path / "out").exists()


def test_grids_that_do_not_agree():
    weights = {"q": TensorInfo((64, 64), np.dtype(np.float16))}
    asked = {"q": LayerGrid(4, 32, True, np.dtype(np.float16))}
    with pytest.raises(ValueError, match="q would have .* of e2m1.* groups of 32.* in mxfp4"):
        common_grids([FORMATS["mxfp4"], FORMATS["compressed-tensors"]], weights, asked)


def edited(tmp_path, model, name, edit):
    """Quantize a model, edit its configuration, and open it."""
    quantize(model, tmp_path / "out", settings=Settings(method="rtn"), formats=[name])
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))
    return dequantized(open_checkpoint(tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_bits": 8}, "num_bits: expected 4, got 8"),
        ({"type": "int"}, "type: expected float, got 'int'"),
        ({"strategy": "group"}, "strategy: expected tensor_group, got 'group'"),
        ({"group_size": 32}, "group_size: expected 16, got 32"),
        ({"symmetric": False}, "symmetric: expected True, got False"),
        ({"dynamic": True}, "dynamic: expected null"),
        ({"x": 1}, "weights.x: expected no key"),
    ],
)
def test_a_configuration_that_is_not_understood(tmp_path, model, changes, message):
    def edit(config):
        config["quantization_config"]["config_groups"]["group_0"]["weights"] |= changes

    with pytest.raises(ValueError, match=f"config.json: .*{message}"):
        edited(tmp_path, model, "nvfp4", edit)


def test_quantized_activations_are_refused(tmp_path, model):
    def edit(config):
        group = config["quantization_config"]["config_groups"]["group_0"]
        group["input_activations"] = dict(group["weights"])

    with pytest.raises(ValueError, match="input_activations: expected null"):
        edited(tmp_path, model, "nvfp4", edit)


@pytest.mark.parametrize(
    ("name", "part", "damage", "message"),
    [
        ("nvfp4", "weight_packed", lambda t: t[:, :9], "weight_packed: expected rows of groups of"),
        ("nvfp4", "weight_packed", lambda t: t.view(np.int8), "weight_packed: expected uint8"),
        ("nvfp4", "weight_scale", lambda t: t.view(np.uint8), "weight_scale: expected float8_e4m3"),
        ("nvfp4", "weight_scale", lambda t: t[:, :1], r"weight_scale: expected \[4, 2\]"),
        ("nvfp4", "weight_scale", lambda t: -t, "weight_scale: expected codes below 127, got"),
        ("nvfp4", "weight_global_scale", lambda t: 0 * t, "weight_global_scale: expected a finite"),
        ("mxfp4", "weight_scale", lambda t: t | 255, "weight_scale: expected codes below 255"),
        ("mlx:mxfp4", "scales", lambda t: t.view(np.int8), "scales: expected uint8"),
        ("mlx:mxfp4", "scales", lambda t: t | 255, "scales: expected codes below 255, got 255"),
        ("mlx:nvfp4", "weight", lambda t: t[:, :3], "weight: expected rows of groups of 16"),
    ],
)
def test_damaged_layers(name, part, damage, message):
    form = FORMATS[name]
    divisor = 200.0 if name == "nvfp4" else None
    tensors = form.pack(random_layer(3, 4, 2, kind_of(name), divisor))
    tensors[part] = damage(tensors[part])
    grid = LayerGrid(4, SIZES[kind_of(name)], True, np.dtype(np.float32), element="e2m1")
    with pytest.raises(ValueError, match=message):
        form.unpack(tensors, grid)
