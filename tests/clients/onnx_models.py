"""Small ONNX models, and what ONNX Runtime makes of them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from models.tiny import VOCAB_SIZE, tiny_tokenizer
from onnx import TensorProto, helper, numpy_helper
from tokenizers import processors

from numbacalib.quantizer import Settings

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


def dense(layer, channels):
    return layer.dequantize()[:, :channels]


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
