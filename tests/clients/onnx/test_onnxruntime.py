"""ONNX models quantized by us, run by ONNX Runtime, on the CPU."""

from __future__ import annotations

import doctest

import numpy as np
import onnx
import pytest
from clients.onnx_models import (
    RNG,
    ROUNDED,
    assert_close,
    dense,
    model_of,
    outputs_of,
    product,
    weight_of,
)
from onnx import TensorProto, helper, numpy_helper

from numbacalib.formats.matmul_nbits import PackedProduct
from numbacalib.formats.onnx_graph import OnnxGraph
from numbacalib.formats.onnx_nodes import StoredProducts
from numbacalib.quantizer import ProofError, Settings, quantize_onnx


def test_the_example_of_the_docstring_runs(tmp_path, monkeypatch):
    product(tmp_path, weight_of(64, 48))
    mixing = RNG.standard_normal((64, 64)) / 8  # channels that go together
    np.savez(tmp_path / "x.npz", x=(RNG.standard_normal((256, 64)) @ mixing).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    (example,) = doctest.DocTestFinder(recurse=False).find(quantize_onnx, module=False)
    assert doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.parametrize("operator", ["MatMulNBits", "DequantizeLinear"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("channels", [256, 250, 40])
@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_onnxruntime_multiplies_by_our_weights(
    tmp_path, bits, block, channels, symmetric, operator
):
    """The last block may be ragged, and there may be one alone."""
    path = product(tmp_path, weight_of(channels, 48))
    settings = Settings(method="rtn", bits=bits, group_size=block, symmetric=symmetric)
    (report,) = quantize_onnx(path, tmp_path / "out", settings=settings, operator=operator)
    assert report.shape == (48, channels)
    ((layer, found),) = StoredProducts(tmp_path / "out" / "model.onnx").values()
    assert found == channels
    x = RNG.standard_normal((5, channels)).astype(np.float32)
    (y,) = outputs_of(tmp_path / "out" / "model.onnx", x)
    assert_close(y, x @ dense(layer, channels).T)
    kinds = {node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node}
    assert operator in kinds


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("channels", "block"), [(256, 16), (250, 32), (40, 64), (300, 256)])
@pytest.mark.parametrize("bits", [2, 4])
def test_real_zero_points(tmp_path, bits, channels, block, dtype):
    kind = TensorProto.FLOAT16 if dtype == np.float16 else TensorProto.FLOAT
    path = product(tmp_path, weight_of(channels, 48, dtype=dtype), dtype=kind)
    settings = Settings(method="rtn", bits=bits, group_size=block)
    quantize_onnx(path, tmp_path / "out", settings=settings, float_zeros=True)
    ((layer, found),) = StoredProducts(tmp_path / "out" / "model.onnx").values()
    assert found == channels
    assert layer.zeros.dtype == np.float32
    assert (layer.zeros != layer.zeros.round()).any()
    x = RNG.standard_normal((5, channels)).astype(dtype)
    (y,) = outputs_of(tmp_path / "out" / "model.onnx", x)
    bound = 2e-3 if dtype == np.float16 else 1e-5
    assert_close(y.astype(np.float32), x.astype(np.float32) @ dense(layer, channels).T, bound)


def test_real_zero_points_lose_less_at_2_bits(tmp_path):
    """Than whole ones, of which a group has four to choose from: GPTQ on both."""
    path = product(tmp_path, weight_of(96, 48))
    mixing = RNG.standard_normal((96, 96)) / 9
    x = (RNG.standard_normal((512, 96)) @ mixing).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    losses = []
    for real in (False, True):
        options = {"settings": Settings(bits=2, group_size=32), "float_zeros": real}
        output = tmp_path / f"out{real}"
        (report,) = quantize_onnx(path, output, calibration=tmp_path / "x.npz", **options)
        losses.append(report.loss)
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ({}, {"bits": 8}, "bits: expected 2 or 4 with float_zeros, got 8"),
        ({}, {"symmetric": True}, "float_zeros: expected MatMulNBits on an asymmetric grid"),
        (
            {"operator": "DequantizeLinear"},
            {},
            "float_zeros: expected MatMulNBits on an asymmetric",
        ),
        ({}, {"refit": True}, "refit: expected False where the format fixes the grid"),
    ],
)
def test_what_has_no_real_zero_points(tmp_path, options, settings, message):
    path = product(tmp_path, weight_of(64, 48))
    own = Settings(**{"method": "rtn", "group_size": 32} | settings)
    with pytest.raises(ValueError, match=message):
        quantize_onnx(path, tmp_path / "out", settings=own, float_zeros=True, **options)
    assert not (tmp_path / "out").exists()


def test_an_old_model_is_converted_and_keeps_its_nodes(tmp_path):
    """Gemm with an addend, and a weight that two nodes share, before DequantizeLinear had blocks."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "bias"], ["a"], "gemm", transB=1),
        helper.make_node("MatMul", ["a", "v"], ["b"], "first"),
        helper.make_node("MatMul", ["b", "v"], ["y"], "second"),
    ]
    tensors = {"w": weight_of(32, 64), "bias": weight_of(1, 32), "v": weight_of(32, 32)}
    model = model_of(nodes, tensors)
    model.opset_import[0].version = 13
    onnx.save(model, tmp_path / "model.onnx")
    options = {"settings": ROUNDED, "operator": "DequantizeLinear"}
    quantize_onnx(tmp_path / "model.onnx", tmp_path / "out", **options)
    written = onnx.load(tmp_path / "out" / "model.onnx")
    onnx.checker.check_model(written)
    kinds = [node.op_type for node in written.graph.node]
    assert kinds == ["DequantizeLinear", "Gemm", "DequantizeLinear", "MatMul", "MatMul"]
    assert written.opset_import[0].version == 21
    layers = StoredProducts(tmp_path / "out" / "model.onnx")
    gemm, product_of_two = (layers[name][0].dequantize().T for name in ("gemm", "second"))
    x = RNG.standard_normal((5, 64)).astype(np.float32)
    (y,) = outputs_of(tmp_path / "out" / "model.onnx", x)
    assert_close(y, (x @ gemm + tensors["bias"]) @ product_of_two @ product_of_two)


def test_float16(tmp_path):
    path = product(tmp_path, weight_of(64, 48, dtype=np.float16), dtype=TensorProto.FLOAT16)
    x = RNG.standard_normal((40, 64)).astype(np.float16)
    np.savez(tmp_path / "x.npz", x=x)
    settings = Settings(bits=4, group_size=32)
    quantize_onnx(path, tmp_path / "out", calibration=tmp_path / "x.npz", settings=settings)
    ((layer, _),) = StoredProducts(tmp_path / "out" / "model.onnx").values()
    assert layer.scales.dtype == np.float16
    (y,) = outputs_of(tmp_path / "out" / "model.onnx", x)
    assert_close(y.astype(np.float32), x.astype(np.float32) @ layer.dequantize().T, 2e-3)


def test_shared_weights_accumulate_over_their_uses(tmp_path):
    """Two nodes, the second by another name, which see half of the channels."""
    mask = np.zeros(64, np.float32)
    mask[:32] = 1
    nodes = [
        helper.make_node("Mul", ["x", "mask"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("MatMul", ["a", "w"], ["c"], "first"),
        helper.make_node("Identity", ["w"], ["again"]),
        helper.make_node("Identity", ["again"], ["once more"]),
        helper.make_node("MatMul", ["b", "once more"], ["d"], "second"),
        helper.make_node("MatMul", ["x", "v"], ["e"], "third"),
        helper.make_node("Add", ["c", "d"], ["f"]),
        helper.make_node("Add", ["e", "f"], ["y"]),
    ]
    tensors = {"mask": mask, "w": weight_of(64, 16), "v": weight_of(64, 16)}
    path = tmp_path / "model.onnx"
    onnx.save(model_of(nodes, tensors), path)
    np.savez(tmp_path / "x.npz", x=RNG.standard_normal((96, 64)).astype(np.float32))
    settings = Settings(bits=4, group_size=32)
    reports = quantize_onnx(
        path, tmp_path / "out", calibration=tmp_path / "x.npz", settings=settings
    )
    assert [(report.name, report.tokens, report.dead) for report in reports] == [
        ("first", 192, 32),
        ("third", 96, 0),
    ]
    written = onnx.load(tmp_path / "out" / "model.onnx")
    onnx.checker.check_model(written)
    names = {each.name for each in written.graph.initializer}
    assert names == {"mask"} | {
        f"{layer}.{part}" for layer in ("first", "third") for part in PackedProduct._fields
    }
    products = [node for node in written.graph.node if node.op_type == "MatMulNBits"]
    assert [node.name for node in products] == ["first", "second", "third"]
    assert products[0].input[1:] == products[1].input[1:]


def test_what_else_is_a_layer_and_what_is_not(tmp_path):
    constant = numpy_helper.from_array(weight_of(32, 40), "value")
    then = helper.make_graph(
        [helper.make_node("MatMul", ["h", "g"], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, ["N", 32])],
    )
    otherwise = helper.make_graph(
        [helper.make_node("Identity", ["h"], ["o"])],
        "else",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, ["N", 32])],
    )
    nodes = [
        helper.make_node("Gemm", ["x", "w", "bias"], ["a"], "gemm", transB=1),
        helper.make_node("Constant", [], ["k"], value=constant),
        helper.make_node("MatMul", ["a", "k"], ["b"], "constant"),
        helper.make_node("Gemm", ["b", "h40"], ["c"], "plain"),
        helper.make_node("Gemm", ["c", "h32"], ["d"], "halved", alpha=0.5),
        helper.make_node("MatMul", ["d", "stack"], ["e"], "stacked"),
        helper.make_node("MatMul", ["d", "d2"], ["h"], "activations"),
        helper.make_node("Neg", ["g"], ["d2"]),
        helper.make_node("If", ["yes"], ["i"], "branch", then_branch=then, else_branch=otherwise),
        helper.make_node("Add", ["i", "e"], ["y"]),
    ]
    nodes.insert(6, nodes.pop(7))
    tensors = {
        "w": weight_of(32, 64),
        "bias": weight_of(1, 32),
        "h40": weight_of(40, 32),
        "h32": weight_of(32, 32),
        "stack": weight_of(1, 32, 32),
        "g": weight_of(32, 32),
        "yes": np.array(True),
    }
    path = tmp_path / "model.onnx"
    onnx.save(model_of(nodes, tensors, rank=3), path)
    graph = OnnxGraph(path)
    assert [layer.name for layer in graph.layers] == ["gemm", "constant", "plain"]
    assert graph.left == {
        "halved": "a scaled or transposed Gemm",
        "stacked": "a weight of shape [1, 32, 32]",
        "branch": "a subgraph",
    }
    quantize_onnx(path, tmp_path / "out", settings=ROUNDED)
    written = tmp_path / "out" / "model.onnx"
    onnx.checker.check_model(onnx.load(written))
    left = {each.name for each in onnx.load(written).graph.initializer}
    assert {"h32", "stack", "g", "bias"} < left
    assert not {"w", "h40"} & left
    layers = StoredProducts(written)
    x = RNG.standard_normal((5, 64)).astype(np.float32)
    c = x
    for name in ("gemm", "constant", "plain"):
        layer, channels = layers[name]
        c = c @ dense(layer, channels).T + (tensors["bias"] if name == "gemm" else 0)
    d = 0.5 * c @ tensors["h32"]
    expected = -d @ tensors["g"] @ tensors["g"] + d @ tensors["stack"][0]
    (y,) = outputs_of(written, x)
    assert_close(y.reshape(expected.shape), expected)


@pytest.mark.parametrize("limit", [1 << 30, 1 << 10])
def test_tensors_beside_the_model(tmp_path, monkeypatch, limit):
    """They are read from there, and written so where the model is large."""
    monkeypatch.setattr("numbacalib.formats.onnx_graph.INLINE_BYTES", limit)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "product"),
        helper.make_node("Add", ["a", "rest"], ["y"]),
    ]
    tensors = {"w": weight_of(64, 512), "rest": weight_of(1, 512)}
    source = tmp_path / "source"
    source.mkdir()
    onnx.save(
        model_of(nodes, tensors),
        source / "model.onnx",
        save_as_external_data=True,
        location="tensors.bin",
        size_threshold=0,
    )
    x = RNG.standard_normal((16, 64)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    settings = Settings(bits=4, group_size=32)
    output = tmp_path / "out"
    quantize_onnx(source / "model.onnx", output, calibration=tmp_path / "x.npz", settings=settings)
    files = {file.name for file in output.iterdir()}
    assert files == {"model.onnx"} | ({"model.onnx.data"} if limit < 1 << 20 else set())
    assert {file.name for file in source.iterdir()} == {"model.onnx", "tensors.bin"}
    ((layer, _),) = StoredProducts(output / "model.onnx").values()
    assert_close(
        outputs_of(output / "model.onnx", x)[0], x @ layer.dequantize().T + tensors["rest"]
    )
    (source / "tensors.bin").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"model\.onnx"):
        quantize_onnx(source / "model.onnx", tmp_path / "other", settings=ROUNDED)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("operator", ["MatMulNBits", "DequantizeLinear"])
def test_what_comes_back_otherwise_gets_no_name(tmp_path, monkeypatch, operator, part):
    """A bit of the codes or of the scales that is another in the file."""
    path = product(tmp_path, weight_of(64, 48))

    def damaged(graph, file, save=OnnxGraph.save):
        save(graph, file)
        proto = onnx.load(file)
        raw = bytearray(proto.graph.initializer[part].raw_data)
        raw[0] ^= 1
        proto.graph.initializer[part].raw_data = bytes(raw)
        onnx.save(proto, file)

    monkeypatch.setattr(OnnxGraph, "save", damaged)
    with pytest.raises(ProofError, match=r"product: other codes or scales than were chosen"):
        quantize_onnx(path, tmp_path / "out", settings=ROUNDED, operator=operator)
    assert not (tmp_path / "out").exists()
