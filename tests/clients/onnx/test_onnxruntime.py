"""ONNX models calibrated and quantized by us, run by ONNX Runtime, on the CPU."""

from __future__ import annotations

import doctest
import json

import numpy as np
import onnx
import onnxruntime
import pytest
from models.tiny import TEXT, VOCAB_SIZE, tiny_tokenizer
from onnx import TensorProto, helper, numpy_helper
from tokenizers import processors

from numbacalib.cli import main
from numbacalib.formats.matmul_nbits import PackedProduct, pack, unpack
from numbacalib.formats.onnx_graph import OnnxGraph
from numbacalib.formats.onnx_nodes import read_products
from numbacalib.methods import QuantizedWeight, gptq
from numbacalib.quantizer import Settings, quantize_onnx
from numbacalib.statistics import InputStatistics

RNG = np.random.default_rng(0)
ROUNDED = Settings(method="rtn", bits=4, group_size=32)
EXACT = 1e-5
"""Of the largest output: with no accuracy level ONNX Runtime multiplies in float32."""


def model_of(nodes, tensors, *, rank=2, width=64, dtype=TensorProto.FLOAT, batch="N"):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, [batch, width])],
        [helper.make_tensor_value_info("y", dtype, [*"ABC"[:rank]])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def weight_of(*shape, dtype=np.float32):
    return (RNG.standard_normal(shape) / np.sqrt(shape[0])).astype(dtype)


def product(directory, weight, **options):
    """A model of one MatMul with a weight [K, M]."""
    path = directory / "model.onnx"
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    onnx.save(model_of([node], {"w": weight}, width=len(weight), **options), path)
    return path


def outputs_of(path, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # products of what DequantizeLinear gives are in float32, too
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def assert_close(actual, expected, bound=EXACT):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound * np.abs(expected).max())


def test_the_example_of_the_docstring_runs(tmp_path, monkeypatch):
    product(tmp_path, weight_of(64, 48))
    mixing = RNG.standard_normal((64, 64)) / 8  # channels that go together
    np.savez(tmp_path / "x.npz", x=(RNG.standard_normal((256, 64)) @ mixing).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    (example,) = doctest.DocTestFinder(recurse=False).find(quantize_onnx, module=False)
    assert doctest.DocTestRunner().run(example).failed == 0


def dense(layer, channels):
    return layer.dequantize()[:, :channels]


def naive(packed, bits, block):
    """Weights from the description of MatMulNBits, bit by bit."""
    rows, groups, _ = packed.B.shape

    def digits(data, count):
        number = int.from_bytes(bytes(data), "little")
        return [(number >> (bits * j)) & ((1 << bits) - 1) for j in range(count)]

    weight = np.empty((rows, groups * block))
    for i in range(rows):
        zeros = [1 << (bits - 1)] * groups
        if packed.zero_points is not None:
            zeros = digits(packed.zero_points[i], groups)
        for g in range(groups):
            codes = np.array(digits(packed.B[i, g], block))
            weight[i, g * block : (g + 1) * block] = (codes - zeros[g]) * float(packed.scales[i, g])
    return weight


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packing(bits, block, symmetric):
    for groups in (1, 2, 5):
        zeros = RNG.integers(0, 1 << bits, (7, groups), np.uint8)
        layer = QuantizedWeight(
            RNG.integers(0, 1 << bits, (7, groups * block), np.uint8),
            RNG.uniform(0.1, 1, (7, groups)).astype(np.float32),
            np.full_like(zeros, 1 << (bits - 1)) if symmetric else zeros,
            bits,
            block,
            symmetric,
        )
        packed = pack(layer)
        assert_close(naive(packed, bits, block), layer.dequantize(), 1e-6)
        assert unpack(packed, bits, block) == layer


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
    ((layer, found),) = read_products(tmp_path / "out" / "model.onnx").values()
    assert found == channels
    x = RNG.standard_normal((5, channels)).astype(np.float32)
    (y,) = outputs_of(tmp_path / "out" / "model.onnx", x)
    assert_close(y, x @ dense(layer, channels).T)
    kinds = {node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node}
    assert operator in kinds


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
    layers = read_products(tmp_path / "out" / "model.onnx")
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
    ((layer, _),) = read_products(tmp_path / "out" / "model.onnx").values()
    assert layer.scales.dtype == np.float16
    (y,) = outputs_of(tmp_path / "out" / "model.onnx", x)
    assert_close(y.astype(np.float32), x.astype(np.float32) @ layer.dequantize().T, 2e-3)


@pytest.mark.parametrize("channels", [64, 50])
def test_gptq_sees_what_the_layer_is_fed(tmp_path, channels):
    """Codes are those of `gptq` from the same inputs, in batches or not."""
    weight = weight_of(channels, 24)
    x = RNG.standard_normal((37, channels)).astype(np.float32) @ weight_of(channels, channels)
    np.savez(tmp_path / "x.npz", x=x)
    settings = Settings(bits=3 + 1, group_size=32, ranges="full", symmetric=True)
    path = product(tmp_path, weight)
    quantize_onnx(path, tmp_path / "out", calibration=tmp_path / "x.npz", settings=settings)
    ((layer, _),) = read_products(tmp_path / "out" / "model.onnx").values()
    size = 64
    statistics = InputStatistics(size)
    filled = np.zeros((32, size), np.float32)  # whole batches of 8
    filled[:, :channels] = x[:32]
    statistics.update(filled)
    matrix = np.zeros((24, size), np.float32)
    matrix[:, :channels] = weight.T
    options = {"bits": 4, "group_size": 32, "symmetric": True, "scale_dtype": np.float32}
    expected = gptq(matrix, statistics.hessian, act_order="desc", static_groups=True, **options)
    same = (layer.codes == expected.codes).mean()
    assert same > 0.99  # sums of batches round differently, and a tie may fall the other way


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
    layers = read_products(written)
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
    ((layer, _),) = read_products(output / "model.onnx").values()
    assert_close(
        outputs_of(output / "model.onnx", x)[0], x @ layer.dequantize().T + tensors["rest"]
    )
    (source / "tensors.bin").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"model\.onnx"):
        quantize_onnx(source / "model.onnx", tmp_path / "other", settings=ROUNDED)
    assert not (tmp_path / "other").exists()


def test_hessians_beyond_one_pass(tmp_path, monkeypatch):
    """The samples run again for those that did not fit; codes are the same."""
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["h0"], "l0")]
    for i in range(1, 4):
        nodes += [
            helper.make_node("Tanh", [f"h{i - 1}"], [f"t{i}"]),
            helper.make_node("MatMul", [f"t{i}", f"w{i}"], ["y" if i == 3 else f"h{i}"], f"l{i}"),
        ]
    path = tmp_path / "model.onnx"
    onnx.save(model_of(nodes, {f"w{i}": weight_of(64, 64) for i in range(4)}), path)
    np.savez(tmp_path / "x.npz", x=RNG.standard_normal((64, 64)).astype(np.float32))
    settings = Settings(bits=4, group_size=32)
    found = []
    for name, size in (("one", 1 << 30), ("many", 40_000)):
        monkeypatch.setattr("numbacalib.quantizer.onnx_samples.HESSIAN_BYTES", size)
        quantize_onnx(path, tmp_path / name, calibration=tmp_path / "x.npz", settings=settings)
        found.append(read_products(tmp_path / name / "model.onnx"))
    assert found[0] == found[1]


@pytest.mark.parametrize("channels", [64, 50])
def test_channel_scales_are_divided_out_before_the_product(tmp_path, channels):
    weight = weight_of(channels, 32)
    x = RNG.standard_normal((64, channels)).astype(np.float32)
    x[:, 3] *= 50
    np.savez(tmp_path / "x.npz", x=x)
    path = product(tmp_path, weight)
    losses = []
    for scales in ("none", "awq"):
        output = tmp_path / scales
        settings = Settings(method="rtn", bits=4, group_size=32, channel_scales=scales)
        calibration = tmp_path / "x.npz" if scales == "awq" else None
        quantize_onnx(path, output, calibration=calibration, settings=settings)
        (y,) = outputs_of(output / "model.onnx", x)
        losses.append(((y - x @ weight) ** 2).sum())
    assert losses[1] < 0.5 * losses[0]
    kinds = [node.op_type for node in onnx.load(tmp_path / "awq" / "model.onnx").graph.node]
    assert kinds == ["Mul", "MatMulNBits"]


@pytest.mark.parametrize(
    ("settings", "arrays", "message"),
    [
        ({"bits": 3}, None, "bits: expected 2, 4 or 8, got 3"),
        ({"group_size": 48}, None, "group_size: expected 16, 32, 64, 128 or 256, got 48"),
        ({"group_size": None}, None, "group_size: expected 16, .* got one scale a row"),
        ({"static_groups": False}, None, "act_order: expected static_groups"),
        ({"target": "propagated"}, None, "target: expected layerwise for ONNX"),
        ({}, None, "calibration: expected a file of inputs, got None"),
        ({"method": "rtn"}, {"x": np.zeros((2, 64))}, "calibration: expected None with round"),
        ({}, {"z": np.zeros((2, 64))}, "x.npz: expected arrays named x, got z"),
        ({}, {"x": np.zeros((0, 64))}, "x.npz: x: expected at least one sample"),
        ({}, {"x": np.zeros((9, 64), int)}, "ONNX Runtime does not run it"),
        ({}, {"x": np.full((9, 64), np.nan, np.float32)}, "product: "),
        ({}, b"nothing", "x.npz: expected a .npz file"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(tmp_path, settings, arrays, message):
    path = product(tmp_path, weight_of(64, 32))
    calibration = None
    if arrays is not None:
        calibration = tmp_path / "x.npz"
        if isinstance(arrays, bytes):
            calibration.write_bytes(arrays)
        else:
            np.savez(calibration, **arrays)
    asked = Settings(**({"bits": 4, "group_size": 32} | settings))
    with pytest.raises(ValueError, match=message) as error:
        quantize_onnx(path, tmp_path / "out", calibration=calibration, settings=asked)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_models_that_are_none(tmp_path):
    path = tmp_path / "model.onnx"
    for content in (b"nothing of the kind", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.onnx: expected an ONNX model"):
            quantize_onnx(path, tmp_path / "out", settings=ROUNDED)
    onnx.save(model_of([helper.make_node("Neg", ["x"], ["y"])], {}), path)
    with pytest.raises(ValueError, match="expected MatMul or Gemm nodes with a constant weight"):
        quantize_onnx(path, tmp_path / "out", settings=ROUNDED)


def test_models_of_a_fixed_batch(tmp_path):
    path = product(tmp_path, weight_of(64, 32), batch=3)
    np.savez(tmp_path / "x.npz", x=RNG.standard_normal((10, 64)).astype(np.float32))
    settings = Settings(bits=4, group_size=32, shrinkage=0.1)
    options = {"calibration": tmp_path / "x.npz", "settings": settings}
    (report,) = quantize_onnx(path, tmp_path / "out", **options)
    assert report.tokens == 9
    np.savez(tmp_path / "x.npz", x=np.ones((2, 64), np.float32))
    with pytest.raises(ValueError, match=r"as many samples of each input, 3 or more, got"):
        quantize_onnx(path, tmp_path / "other", **options)


def test_the_command_line(tmp_path, capsys):
    path = product(tmp_path, weight_of(64, 32))
    np.savez(tmp_path / "x.npz", x=RNG.standard_normal((16, 64)).astype(np.float32))
    command = ["quantize", str(path), "--bits", "4", "--group-size", "32"]
    command += ["--output", str(tmp_path / "out"), "--report", str(tmp_path / "report.json")]
    given = ["--calibration", str(tmp_path / "x.npz"), "--format", "onnx"]
    assert main([*command, *given]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["layers"][0]["name"] == "product"
    for wrong, line in (
        (["--format", "gptq"], "format: expected onnx or onnx:qdq for an ONNX model, got gptq"),
        (["--text", "x"], "text: expected none with an ONNX model, which takes --calibration"),
        (["--device", "cuda"], "device: expected cpu with an ONNX model, got 'cuda'"),
    ):
        assert main([*command, *wrong]) == 2
        assert line in capsys.readouterr().err


def reader_of_text(directory, names):
    """A model of tokens, or of more, with a tokenizer beside it; the last axis of each input is free."""
    path = directory / "model.onnx"
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "T"]) for name in names]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["A", "B", "C"])
    tensors = {"table": weight_of(VOCAB_SIZE, 32), "w": weight_of(32, 16)}
    nodes = [
        helper.make_node("Gather", ["table", names[0]], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"], "product"),
    ]
    arrays = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "g", inputs, [output], arrays)
    imports = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    tokenizer = tiny_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    return path, tensors


def test_a_text_is_tokenized_by_the_tokenizer_beside_the_model(tmp_path):
    """Codes are those of the same tokens in a file of arrays."""
    names = ["input_ids", "attention_mask", "token_type_ids", "position_ids"]
    path, _ = reader_of_text(tmp_path, names)
    (tmp_path / "text.txt").write_text(TEXT * 20, encoding="utf-8")
    settings = Settings(bits=4, group_size=32, samples=4, sequence_length=48)
    options = {"calibration": tmp_path / "text.txt", "settings": settings}
    (report,) = quantize_onnx(path, tmp_path / "one", **options)
    assert report.tokens == 4 * 48
    ids = tiny_tokenizer().encode(TEXT * 20).ids
    rows = np.array(ids[: len(ids) // 46 * 46]).reshape(-1, 46)
    rows = rows[np.arange(4) * len(rows) // 4]
    rows = np.pad(rows, ((0, 0), (1, 1)))
    arrays = dict.fromkeys(names, np.zeros_like(rows)) | {"input_ids": rows}
    np.savez(tmp_path / "x.npz", **arrays)
    quantize_onnx(path, tmp_path / "two", calibration=tmp_path / "x.npz", settings=settings)
    one, two = (read_products(tmp_path / name / "model.onnx") for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("names", "content", "message"),
    [
        (["input_ids"], TEXT.encode(), "text.txt: expected text for 4 sequences of 48 tokens"),
        (["input_ids"], b"\xff\xfe", "text.txt: expected text in UTF-8 or a .npz file"),
        (["input_ids", "pixels"], TEXT.encode() * 20, "got pixels of .*calibrate it on a .npz"),
        (["x"], TEXT.encode() * 20, "expected a .npz of arrays named x: .* does not read text"),
    ],
)
def test_texts_that_do_not_fit_are_refused(tmp_path, names, content, message):
    path, _ = reader_of_text(tmp_path, names)
    (tmp_path / "text.txt").write_bytes(content)
    settings = Settings(bits=4, group_size=32, samples=4, sequence_length=48)
    with pytest.raises(ValueError, match=message):
        quantize_onnx(path, tmp_path / "out", calibration=tmp_path / "text.txt", settings=settings)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(
        ValueError, match=r"expected a tokenizer\.json" if "x" not in names else "text"
    ):
        quantize_onnx(path, tmp_path / "out", calibration=tmp_path / "text.txt", settings=settings)
    assert not (tmp_path / "out").exists()
