"""Export of a small Llama to ONNX, node by node: tokens in, logits out, float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from numbacalib.models import Checkpoint
from numbacalib.models.rope import inverse_frequencies


class _Graph:
    """Nodes and tensors in order of addition; a value is the name of a node's output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"constant.{len(self.tensors)}"
        array = np.ascontiguousarray(np.asarray(values, dtype))
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def __call__(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = f"value.{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name, **attributes))
        return output

    def norm(self, x: str, weight: NDArray[Any], epsilon: float) -> str:
        squares = self("Mul", x, x)
        mean = self("ReduceMean", squares, self.constant([-1], np.int64))
        root = self("Sqrt", self("Add", mean, self.constant(epsilon)))
        return self("Mul", self("Div", x, root), self.constant(weight))

    def linear(self, x: str, weight: NDArray[Any], name: str) -> str:
        return self("MatMul", x, self.constant(weight.T), name=name)


def export_llama(checkpoint: Checkpoint, path: Path, length: int) -> None:
    """Write a Llama for sequences of `length` tokens, as exporters of PyTorch write its MatMul nodes."""
    config, graph = checkpoint.config, _Graph()
    heads, kv, size = config.num_heads, config.num_kv_heads, config.head_dim
    frequencies, _ = inverse_frequencies(config.rope, length)
    angles = np.tile(np.arange(length)[:, None] * frequencies, 2)
    turns = graph.constant(np.cos(angles)), graph.constant(np.sin(angles))
    mask = graph.constant(np.triu(np.full((length, length), -1e9), 1))

    def weight(name: str) -> NDArray[Any]:
        return checkpoint.tensor(f"{name}.weight").astype(np.float32)

    def split(x: str, count: int) -> str:
        shaped = graph("Reshape", x, graph.constant([0, 0, count, size], np.int64))
        return graph("Transpose", shaped, perm=[0, 2, 1, 3])

    def turned(x: str) -> str:
        ends = [graph.constant([end], np.int64) for end in (0, size // 2, size)]
        axis = graph.constant([3], np.int64)
        first, second = (graph("Slice", x, ends[i], ends[i + 1], axis) for i in (0, 1))
        rotated = graph("Concat", graph("Neg", second), first, axis=3)
        return graph("Add", graph("Mul", x, turns[0]), graph("Mul", rotated, turns[1]))

    def repeated(x: str) -> str:
        wide = graph("Unsqueeze", x, graph.constant([2], np.int64))
        wide = graph("Expand", wide, graph.constant([1, 1, heads // kv, 1, 1], np.int64))
        return graph("Reshape", wide, graph.constant([0, heads, length, size], np.int64))

    table = weight("model.embed_tokens")
    hidden = graph("Gather", graph.constant(table), "input_ids")
    for layer in range(config.num_layers):
        block = f"model.layers.{layer}"
        x = graph.norm(hidden, weight(f"{block}.input_layernorm"), config.rms_norm_eps)
        q, k, v = (
            graph.linear(x, weight(name), name)
            for name in (f"{block}.self_attn.{part}_proj" for part in "qkv")
        )
        keys = graph("Transpose", repeated(turned(split(k, kv))), perm=[0, 1, 3, 2])
        scores = graph("MatMul", turned(split(q, heads)), keys)
        scores = graph("Add", graph("Mul", scores, graph.constant(size**-0.5)), mask)
        mixed = graph("MatMul", graph("Softmax", scores, axis=-1), repeated(split(v, kv)))
        mixed = graph("Transpose", mixed, perm=[0, 2, 1, 3])
        mixed = graph("Reshape", mixed, graph.constant([0, 0, heads * size], np.int64))
        output = f"{block}.self_attn.o_proj"
        hidden = graph("Add", hidden, graph.linear(mixed, weight(output), output))
        x = graph.norm(hidden, weight(f"{block}.post_attention_layernorm"), config.rms_norm_eps)
        gate, up = (
            graph.linear(x, weight(name), name)
            for name in (f"{block}.mlp.{part}_proj" for part in ("gate", "up"))
        )
        inner = graph("Mul", graph("Mul", gate, graph("Sigmoid", gate)), up)
        down = f"{block}.mlp.down_proj"
        hidden = graph("Add", hidden, graph.linear(inner, weight(down), down))
    x = graph.norm(hidden, weight("model.norm"), config.rms_norm_eps)
    head = table if config.tie_word_embeddings else weight("lm_head")
    graph.nodes.append(
        helper.make_node("MatMul", [x, graph.constant(head.T)], ["logits"], "lm_head")
    )
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["N", length])]
    shape = "N", length, config.vocab_size
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)]
    made = helper.make_graph(graph.nodes, "llama", inputs, outputs, graph.tensors)
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=10), path)
