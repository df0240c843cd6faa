"""Linear layers of an ONNX model: products with a constant weight, found, read and replaced.

A layer is a weight that is the second input of MatMul nodes, or of Gemm nodes without scaling and without
a transposed first input. Several nodes may share it, also through Identity nodes. Weights are initializers
or the values of Constant nodes, in the file or beside it (external data). Subgraphs are left unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.onnx_nodes import (
    DOMAIN,
    OPERATORS,
    GraphLayer,
    array_of,
    attributes_of,
    name_of,
)
from numbacalib.methods import QuantizedWeight
from numbacalib.runtime.extras import extra

with extra("onnx"):
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import external_data_helper, helper, numpy_helper, version_converter

INLINE_BYTES = 1 << 30
"""Most bytes of tensors inside a model's file; more go to a file beside it, since 2 GiB cannot be read."""

_FLOATS = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.FLOAT16: np.float16}


class OnnxGraph:
    """Model read from a file; external tensors are read on access.

    Parameters
    ----------
    path : Path
    opset : int, default 1
        Required version of ONNX's own operators; an older model is converted to it.

    Attributes
    ----------
    layers : list of GraphLayer
        In the order of their first nodes.
    left : dict of str to str
        Reasons for products that are not quantized, by node name.

    Raises
    ------
    ValueError
        If it is not an ONNX model, or cannot be converted.
    """

    def __init__(self, path: Path, opset: int = 1) -> None:
        self.path = path
        try:
            self.proto = onnx.load(str(path), load_external_data=False)
        except DecodeError:
            raise ValueError(f"{path}: expected an ONNX model, found something else") from None
        if not self.proto.graph.node:
            raise ValueError(f"{path}: expected an ONNX model with nodes, found none")
        self._upgrade(opset)
        graph = self.proto.graph
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if (
                node.op_type == "Constant"
                and (value := attributes_of(node).get("value")) is not None
            ):
                self._tensors[node.output[0]] = value
        self._added: list[Any] = []
        self._products: dict[str, list[Any]] = {}
        self.left: dict[str, str] = {}
        self.layers = self._find()

    def _upgrade(self, opset: int) -> None:
        """Convert the model to `opset` if it has an older one."""
        own = max((each.version for each in self.proto.opset_import if not each.domain), default=1)
        if own >= opset:
            return
        try:
            self.proto = version_converter.convert_version(self.proto, opset)
        except (RuntimeError, version_converter.ConvertError) as error:
            raise ValueError(
                f"{self.path}: expected a model of opset {opset}, got {own}, which onnx does not convert: "
                f"{' '.join(str(error).split())}"
            ) from None
        least = helper.find_min_ir_version_for(self.proto.opset_import, ignore_unknown=True)
        self.proto.ir_version = max(self.proto.ir_version, least)

    def weight(self, layer: GraphLayer) -> NDArray[Any]:
        """Return the weight of a layer, [M, K].

        Raises
        ------
        ValueError
            If the file beside the model is missing or short.
        """
        try:
            matrix = array_of(self._tensors[layer.weight], self.path.parent)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        return matrix.T if layer.transposed else matrix

    def probe(self, names: Sequence[str]) -> bytes:
        """Return the model with these tensors as its outputs."""
        probed = onnx.ModelProto()
        probed.CopyFrom(self.proto)
        del probed.graph.output[:]
        probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        return bytes(probed.SerializeToString())

    def replace(
        self,
        layer: GraphLayer,
        quantized: QuantizedWeight,
        operator: str,
        divisor: NDArray[Any] | None = None,
    ) -> int:
        """Replace a layer's nodes by an operator with quantized weights; return the weights' bytes.

        `quantized` is [M, G * block], padded beyond K; `operator` is one of
        `numbacalib.formats.onnx_nodes.OPERATORS`; scaled input channels are first divided by `divisor` [K].
        """
        made = OPERATORS[operator](layer, quantized)
        self._added += made.tensors
        factors = ""
        if divisor is not None:
            factors = f"{layer.name}.factors"
            self._added.append(numpy_helper.from_array((1 / divisor).astype(layer.dtype), factors))
        before = list(made.shared)
        for node in layer.nodes:
            scaled = f"{node.output[0]}.scaled" if factors else node.input[0]
            nodes = made.nodes(node, scaled)
            if factors:
                nodes.insert(0, helper.make_node("Mul", [node.input[0], factors], [scaled]))
            self._products[node.output[0]] = [*before, *nodes]
            before = []
        return made.size

    def stored_bytes(self) -> int:
        """Bytes of the tensors of the model, if it were saved now."""
        graph = self._rewritten().graph
        return sum(
            each.ByteSize() + _external_bytes(each)
            for each in (*graph.initializer, *_constants(graph))
        )

    def save(self, path: Path) -> None:
        """Write the model with its replaced layers; a large one has its tensors in a file beside it.

        Raises
        ------
        ValueError
            If a file beside the source is missing or short.
        OSError
            If writing fails.
        """
        total = self.stored_bytes()
        proto = self._rewritten()
        try:
            external_data_helper.load_external_data_for_model(proto, str(self.path.parent))
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            raise ValueError(f"{self.path}: {error}") from None
        beside: dict[str, Any] = {}
        if total > INLINE_BYTES:
            beside = {"save_as_external_data": True, "location": f"{path.name}.data"}
        onnx.save(proto, str(path), **beside)

    def _rewritten(self) -> Any:
        """Return a copy with the new products, and without tensors that are no longer used."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        graph = proto.graph
        nodes = [made for node in graph.node for made in self._products.get(_output(node), [node])]
        _replace_nodes(graph, nodes)
        used = _drop_unused_constants(graph)
        tensors = [each for each in graph.initializer if each.name in used] + self._added
        graph.ClearField("initializer")
        graph.initializer.extend(tensors)
        inputs = [
            each for each in graph.input if each.name in used or each.name not in self._tensors
        ]
        graph.ClearField("input")
        graph.input.extend(inputs)
        if self._products and DOMAIN not in {each.domain for each in proto.opset_import}:
            proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        return proto

    def _find(self) -> list[GraphLayer]:
        """Find the layers, and record why other products with a constant weight are not layers."""
        found: dict[tuple[str, bool], GraphLayer] = {}
        names: dict[str, str] = {}  # original names of tensors behind Identity nodes
        for node in self.proto.graph.node:
            if any(each.HasField("g") or each.graphs for each in node.attribute):
                self.left[name_of(node)] = "a subgraph"
            if node.op_type == "Identity":
                names[node.output[0]] = names.get(node.input[0], node.input[0])
            if node.op_type not in ("MatMul", "Gemm") or len(node.input) < 2:
                continue
            weight = names.get(node.input[1], node.input[1])
            tensor = self._tensors.get(weight)
            if tensor is None:
                continue
            if reason := _why_not(node, tensor):
                self.left[name_of(node)] = reason
                continue
            transposed = node.op_type == "MatMul" or not attributes_of(node).get("transB", 0)
            rows, channels = reversed(tensor.dims) if transposed else tensor.dims
            dtype = np.dtype(_FLOATS[tensor.data_type])
            layer = GraphLayer(name_of(node), weight, transposed, (rows, channels), dtype)
            found.setdefault((weight, transposed), layer).nodes.append(node)
        return list(found.values())


def _why_not(node: Any, tensor: Any) -> str | None:
    """Return the reason why a product with a constant is not a layer; None if it is one."""
    if tensor.data_type not in _FLOATS:
        return f"a weight of {onnx.TensorProto.DataType.Name(tensor.data_type)}"
    if len(tensor.dims) != 2 or 0 in tensor.dims:
        return f"a weight of shape {list(tensor.dims)}"
    if node.op_type == "Gemm":
        options = {"alpha": 1.0, "beta": 1.0, "transA": 0} | attributes_of(node)
        if options["transA"] or options["alpha"] != 1 or options["beta"] != 1:
            return "a scaled or transposed Gemm"
    return None


def _output(node: Any) -> str:
    """Name of a node's first output, which is unique."""
    return str(node.output[0]) if node.output else ""


def _replace_nodes(graph: Any, nodes: list[Any]) -> None:
    graph.ClearField("node")
    graph.node.extend(nodes)


def _drop_unused_constants(graph: Any) -> set[str]:
    """Drop Constant and Identity nodes whose results are not read; return the names that are read."""
    used = {each.name for each in graph.output}
    kept = []
    for node in reversed(graph.node):  # readers of a result come after it
        if node.op_type in ("Constant", "Identity") and not used & set(node.output):
            continue
        kept.append(node)
        used |= set(node.input) | _read_in_subgraphs(node)
    _replace_nodes(graph, kept[::-1])
    return used


def _read_in_subgraphs(node: Any) -> set[str]:
    """Names that a node's subgraphs read, including their own, which do no harm."""
    used: set[str] = set()
    for attribute in node.attribute:
        for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            used |= {each.name for each in graph.output}
            for inner in graph.node:
                used |= set(inner.input) | _read_in_subgraphs(inner)
    return used


def _constants(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        if node.op_type == "Constant" and (value := attributes_of(node).get("value")) is not None:
            yield value


def _external_bytes(tensor: Any) -> int:
    """Bytes of a tensor in an external file."""
    if not external_data_helper.uses_external_data(tensor):
        return 0
    length = external_data_helper.ExternalDataInfo(tensor).length
    if length:
        return int(length)
    return int(np.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
