"""Nodes of an ONNX model that multiply by quantized weights: construction and reading.

Two operators: ONNX Runtime's MatMulNBits (`matmul_nbits`), which replaces the product, and ONNX's
DequantizeLinear (`dequantize_linear`), whose result is the weight of the original product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats import dequantize_linear, matmul_nbits
from numbacalib.formats.dequantize_linear import DequantizedLinear
from numbacalib.formats.matmul_nbits import PackedProduct
from numbacalib.methods import QuantizedWeight
from numbacalib.runtime.extras import extra

with extra("onnx"):
    import onnx
    from onnx import external_data_helper, helper, numpy_helper

DOMAIN = "com.microsoft"
PRODUCT, DEQUANTIZE = "MatMulNBits", "DequantizeLinear"


@dataclass
class GraphLayer:
    """A constant weight and the nodes that multiply by it."""

    name: str
    """Name of the first node, or of its output."""
    weight: str
    """Name of the tensor."""
    transposed: bool
    """True if the tensor is [K, M], as for MatMul, and not [M, K]."""
    shape: tuple[int, int]
    """M, K."""
    dtype: np.dtype
    nodes: list[Any] = field(default_factory=list)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that its nodes multiply, each once."""
        return tuple(dict.fromkeys(node.input[0] for node in self.nodes))


class Made(NamedTuple):
    """Tensors and nodes that replace a layer."""

    tensors: list[Any]
    shared: list[Any]
    """Nodes before all of the layer's."""
    nodes: Callable[[Any, str], list[Any]]
    """Maps one of the layer's nodes, and the name of its input, to the nodes that replace it."""
    size: int
    """Bytes of the tensors."""


def matmul_nbits_of(layer: GraphLayer, quantized: QuantizedWeight) -> Made:
    """Build MatMulNBits nodes."""
    given = _named(layer, matmul_nbits.pack(quantized))
    rows, channels = layer.shape
    sizes = {"K": channels, "N": rows, "bits": quantized.bits, "block_size": quantized.group_size}
    tensors = [numpy_helper.from_array(each, name) for name, each in given.items()]
    size = sum(each.nbytes for each in given.values())
    return Made(tensors, [], partial(_product, names=list(given), sizes=sizes), size)


def _product(node: Any, multiplied: str, *, names: list[str], sizes: dict[str, Any]) -> list[Any]:
    """Build a node's product, and the addition of Gemm's addend."""
    output, addend = node.output[0], node.input[2] if len(node.input) > 2 else ""
    product = f"{output}.product" if addend else output
    inputs = [multiplied, *names]
    made = [
        helper.make_node(PRODUCT, inputs, [product], name_of(node), domain=DOMAIN, **sizes),
    ]
    if addend:
        made.append(helper.make_node("Add", [product, addend], [output]))
    return made


def dequantize_linear_of(layer: GraphLayer, quantized: QuantizedWeight) -> Made:
    """Build a DequantizeLinear node, and let the layer's nodes multiply by its result."""
    rows, channels = layer.shape
    given = _named(layer, dequantize_linear.pack(quantized, channels, transposed=layer.transposed))
    tensors = [numpy_helper.from_array(each, name) for name, each in given.items()]
    options: dict[str, Any] = {
        "axis": 0 if layer.transposed else 1,
        "block_size": quantized.group_size,
    }
    result = f"{layer.name}.dequantized"
    shared = helper.make_node(DEQUANTIZE, list(given), [result], result, **options)
    shape, dtype = (rows, channels), layer.dtype
    sizes = quantized.bits, quantized.group_size, quantized.symmetric, dtype.itemsize
    size = dequantize_linear.stored_bytes(shape, *sizes)
    return Made(tensors, [shared], partial(_multiplied_by, weight=result), size)


def _multiplied_by(node: Any, multiplied: str, *, weight: str) -> list[Any]:
    """Copy a node with another input and weight."""
    made = onnx.NodeProto()
    made.CopyFrom(node)
    made.input[0], made.input[1] = multiplied, weight
    return [made]


OPERATORS: dict[str, Callable[[GraphLayer, QuantizedWeight], Made]] = {
    PRODUCT: matmul_nbits_of,
    DEQUANTIZE: dequantize_linear_of,
}
"""Builders of nodes, by operator."""


def _named(layer: GraphLayer, parts: Any) -> dict[str, NDArray[Any]]:
    names = (f"{layer.name}.{part}" for part in parts._fields)
    given = zip(names, parts, strict=True)
    return {name: np.ascontiguousarray(each) for name, each in given if each is not None}


class StoredProducts(Mapping[str, tuple[QuantizedWeight, int]]):
    """Quantized layers of a model in a file, by the names of their nodes: their weights and K.

    Weights are padded to whole blocks. Each is read on access, also from a file beside the model.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        graph = onnx.load(str(path), load_external_data=False).graph
        self._path = path
        self._tensors = {each.name: each for each in graph.initializer}
        made = {node.output[0]: node for node in graph.node if node.op_type == DEQUANTIZE}
        self._sources = {
            name_of(node): source
            for node in graph.node
            if (source := node if node.op_type == PRODUCT else made.get(_second_input(node)))
        }

    def __getitem__(self, name: str) -> tuple[QuantizedWeight, int]:
        """Read a layer.

        Raises
        ------
        KeyError
            If there is none of that name.
        ValueError
            If a tensor does not fit its node.
        """
        source = self._sources[name]
        product = source.op_type == PRODUCT
        names = source.input[1:4] if product else source.input
        sizes = attributes_of(source)
        try:
            codes, scales, zeros = [*map(self._array, names), None, None][:3]
            if codes is None or scales is None:
                raise ValueError("expected codes and scales, found none")
            if product:
                packed = PackedProduct(codes, scales, zeros)
                weight = matmul_nbits.unpack(packed, sizes["bits"], sizes["block_size"])
                return weight, int(sizes["K"])
            stored, transposed = DequantizedLinear(codes, scales, zeros), sizes["axis"] == 0
            weight = dequantize_linear.unpack(stored, sizes["block_size"], transposed=transposed)
            return weight, int(codes.shape[0 if transposed else 1])
        except ValueError as error:
            raise ValueError(f"{self._path}: {name}: {error}") from None

    def _array(self, name: str) -> NDArray[Any] | None:
        """Read a tensor; None for an empty name, an absent optional input."""
        return array_of(self._tensors[name], self._path.parent) if name else None

    def __contains__(self, name: object) -> bool:
        return name in self._sources  # `Mapping` would read the layer

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def array_of(stored: Any, folder: Path) -> NDArray[Any]:
    """Read a tensor, from its external file in `folder` if it has one.

    Raises
    ------
    ValueError
        If that file is missing or short.
    """
    tensor = onnx.TensorProto()
    tensor.CopyFrom(stored)
    try:
        if external_data_helper.uses_external_data(tensor):
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        return numpy_helper.to_array(tensor)
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ValueError(f"{stored.name}: {error}") from None


def _second_input(node: Any) -> str:
    return str(node.input[1]) if len(node.input) > 1 else ""


def attributes_of(node: Any) -> dict[str, Any]:
    """Values of a node's attributes, by name."""
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def name_of(node: Any) -> str:
    """Name of a node, or of its first output."""
    return str(node.name or node.output[0])
