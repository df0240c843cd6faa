"""ONNX models: calibrated by ONNX Runtime, quantized layer by layer, written with MatMulNBits."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats import dequantize_linear, matmul_nbits
from numbacalib.formats.format import LayerGrid
from numbacalib.formats.grid_finders import RealZeros
from numbacalib.formats.matmul_nbits import REAL_BITS, RULES, padded
from numbacalib.formats.output_directory import new_directory
from numbacalib.methods import (
    LayerReport,
    LayerSettings,
    QuantizedWeight,
    awq_scales,
    quantize_layer,
)
from numbacalib.quantizer.onnx_samples import Samples
from numbacalib.quantizer.preflight import require_space
from numbacalib.quantizer.progress import Progress
from numbacalib.quantizer.proof import ProofError
from numbacalib.quantizer.settings import Settings, check
from numbacalib.runtime.extras import extra
from numbacalib.statistics import InputStatistics

if TYPE_CHECKING:
    from numbacalib.formats.onnx_graph import GraphLayer, OnnxGraph

log = logging.getLogger("numbacalib")


def quantize_onnx(
    model: str | Path,
    output: str | Path,
    *,
    calibration: str | Path | None = None,
    settings: Settings,
    operator: str = "MatMulNBits",
    float_zeros: bool = False,
    clean: bool = False,
) -> list[LayerReport]:
    """Quantize the products with constant weights of an ONNX model, for ONNX Runtime.

    The model runs in ONNX Runtime on the calibration samples; the inputs of each layer are accumulated into
    its statistics. Every layer sees the original model's inputs. A weight that several nodes share is
    quantized once, from the inputs of all these nodes.

    Parameters
    ----------
    model : path
        An ONNX file; tensors may be in files beside it.
    output : path
        Absent, or an empty directory: it gets a file of the model's name. It appears when it is complete.
    calibration : path, optional
        ``.npz``: an array for each input of the model by its name, samples along the first axis, all of
        which are used. Any other file is a text, which needs a ``tokenizer.json`` beside the model: see
        `numbacalib.quantizer.onnx_samples`. Round-to-nearest on full ranges needs none.
    settings : Settings
        `bits` must be 2, 4 or 8, and `group_size`, the block, 16 to 256; it need not divide K. `samples`
        and `sequence_length` apply to a text.
    operator : str, default "MatMulNBits"
        Operator that uses the weights: ONNX Runtime's "MatMulNBits", or ONNX's own "DequantizeLinear"
        before the existing nodes. Models of too old an opset for that are converted.
    float_zeros : bool, default False
        Store real zero points, at 2 and 4 bits, with MatMulNBits. Scales and zeros are searched for a small
        error, and codes chosen on them.
    clean : bool, default False
        Remove leftovers of killed runs to the same output.

    Returns
    -------
    list of LayerReport
        In the order of the graph.

    Raises
    ------
    ValueError, TypeError, OSError
        If an input does not fit, or there is no room for the output; nothing has been written then.
    ModuleNotFoundError
        If a package of the extra `onnx` is missing.
    numpy.linalg.LinAlgError
        If a layer's damped Hessian is not positive definite.
    ProofError
        If the output read back is not what was chosen. It is kept beside `output`, by a name that says so.

    Examples
    --------
    >>> from numbacalib.quantizer import Settings, quantize_onnx
    >>> settings = Settings(bits=4, group_size=32)
    >>> reports = quantize_onnx("model.onnx", "quantized", calibration="x.npz", settings=settings)
    >>> reports[0].tokens, reports[0].loss < reports[0].rtn_loss
    (256, True)
    """
    if float_zeros:
        settings = replace(settings, find_grid=RealZeros())
    check(settings, None)
    settings = settings.settled(text=False, experts=False)
    if operator not in _OPERATORS:
        raise ValueError(f"operator: expected {' or '.join(_OPERATORS)}, got {operator!r}")
    _check(settings, operator)
    with extra("onnx"):
        import onnxruntime  # noqa: F401

        from numbacalib.formats.onnx_graph import OnnxGraph
    opset = 1 if operator == "MatMulNBits" else dequantize_linear.OPSETS[settings.bits]
    graph = OnnxGraph(_existing(model), opset)
    layers = graph.layers
    if not layers:
        raise ValueError(
            f"{model}: expected MatMul or Gemm nodes with a constant weight, found none"
        )
    for name, reason in graph.left.items():
        log.warning("%s is not quantized: %s", name, reason)
    samples = None
    if settings.calibrated() or settings.channel_scales != "none":
        if calibration is None:
            raise ValueError("calibration: expected a file of inputs, got None")
        samples = Samples(graph, _existing(calibration), settings)
    elif calibration is not None:
        raise ValueError("calibration: expected None with round-to-nearest on full ranges")
    block = settings.group_size
    assert block is not None  # RULES allow no whole rows
    with new_directory(output, clean=clean) as directory:
        saved = sum(_saved_bytes(each, settings, operator) for each in layers)
        require_space({directory: graph.stored_bytes() - saved})
        reports: list[LayerReport] = []
        chosen: dict[str, bytes] = {}
        found: Iterable[tuple[list[GraphLayer], InputStatistics | None]] = (
            [([each], None) for each in layers] if samples is None else samples.statistics(block)
        )
        with Progress(len(layers)) as progress:
            progress.show("running the samples")
            for members, statistics in found:
                for report, digest in _quantize(graph, members, statistics, settings, operator):
                    reports.append(report)
                    chosen[report.name] = digest
                    progress.step(report.name)
        path = directory / Path(model).name
        graph.save(path)
        _prove(path, chosen)
    order = {layer.name: index for index, layer in enumerate(layers)}
    return sorted(reports, key=lambda report: order[report.name])


_OPERATORS = ("MatMulNBits", "DequantizeLinear")


def _saved_bytes(layer: GraphLayer, settings: Settings, operator: str) -> int:
    """Bytes by which a layer's tensors shrink."""
    rows, channels = layer.shape
    item, block = layer.dtype.itemsize, settings.group_size
    assert block is not None  # RULES allow no whole rows
    sizes = layer.shape, settings.bits, block, settings.symmetric, item
    if operator == "DequantizeLinear":
        return rows * channels * item - dequantize_linear.stored_bytes(*sizes)
    real = settings.find_grid is not None
    return rows * channels * item - matmul_nbits.packed_bytes(*sizes, real=real)


def _check(settings: Settings, operator: str) -> None:
    """Refuse settings that the format or the graph cannot hold."""
    if settings.find_grid is not None:
        if operator != "MatMulNBits" or settings.symmetric:
            raise ValueError("float_zeros: expected MatMulNBits on an asymmetric grid with it")
        if settings.bits not in REAL_BITS:
            raise ValueError(f"bits: expected 2 or 4 with float_zeros, got {settings.bits}")
    grid = LayerGrid(settings.bits, settings.group_size, settings.symmetric, np.dtype(np.float32))
    unordered = settings.method == "gptq" and settings.act_order == "desc"
    RULES.check(replace(grid, g_idx=unordered and not settings.static_groups))
    if settings.target == "propagated":
        raise ValueError(f"target: expected layerwise for ONNX, got {settings.target!r}")
    if settings.size is not None:
        raise ValueError(f"size: expected none for ONNX, got {settings.size:g}")


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return path


def _quantize(
    graph: OnnxGraph,
    layers: Sequence[GraphLayer],
    statistics: InputStatistics | None,
    settings: Settings,
    operator: str,
) -> Iterator[tuple[LayerReport, bytes]]:
    """Quantize layers that share their inputs, replace them in the graph, and yield digests of codes."""
    own = [_on_layer(settings, layer) for layer in layers]
    weights = [
        _filled(graph.weight(layer), each.group_size)
        for layer, each in zip(layers, own, strict=True)
    ]
    scales = None
    if statistics is not None and settings.channel_scales == "awq":
        scales = _channel_scales(weights, statistics, layers[0].shape[1], settings, own[0])
        weights = [(weight * scales).astype(weight.dtype) for weight in weights]
        statistics = statistics.divided(scales)
    for layer, weight, each in zip(layers, weights, own, strict=True):
        quantized, report = quantize_layer(layer.name, weight, statistics, each)
        assert isinstance(quantized, QuantizedWeight)  # no codebooks: see settings.check
        divisor = None if scales is None else scales[: layer.shape[1]]
        kept = quantized.to_host()
        stored = graph.replace(layer, kept, operator, divisor)
        told = replace(report, shape=layer.shape, stored_bytes=stored)
        yield told, _digest(kept, layer.shape[1])


def _digest(weight: QuantizedWeight, channels: int) -> bytes:
    """Return a hash of a weight's grid, and of its codes, scales and zeros to the bit."""
    grid = f"{weight.bits} {weight.group_size} {weight.symmetric} {weight.scales.dtype}"
    found = hashlib.sha256(grid.encode())
    for part in (weight.codes[:, :channels], weight.scales, weight.zeros):
        found.update(np.ascontiguousarray(part).data)
    return found.digest()


def _prove(path: Path, chosen: Mapping[str, bytes]) -> None:
    """Read the layers of a model that was just written, and compare them bit for bit with those chosen.

    Raises
    ------
    ProofError
        Naming the layer that differs.
    """
    from numbacalib.formats.onnx_nodes import StoredProducts

    stored = StoredProducts(path)
    for name, expected in chosen.items():
        try:
            same = name in stored and _digest(*stored[name]) == expected
        except ValueError as error:
            raise ProofError(str(error)) from error
        if not same:
            raise ProofError(f"{path}: {name}: other codes or scales than were chosen")


def _on_layer(settings: Settings, layer: GraphLayer) -> LayerSettings:
    # negative scales only on request: not all runtimes of ONNX's own operators accept them
    signed = bool(settings.full_range)
    return replace(settings, scale_dtype=RULES.scale_dtype(layer.dtype), full_range=signed)


def _channel_scales(
    weights: Sequence[NDArray[Any]],
    statistics: InputStatistics,
    channels: int,
    settings: Settings,
    own: LayerSettings,
) -> NDArray[np.float32]:
    """Scales of the input channels by AWQ, padded [K]; a Mul node will divide by them."""
    magnitude = statistics.mean_abs if settings.awq_magnitude == "mean" else statistics.max_abs
    magnitude = magnitude.copy()
    magnitude[channels:] = magnitude[:channels].mean()  # padding, which has no effect
    found = awq_scales(
        weights,
        statistics.hessian,
        magnitude,
        weight_term=settings.awq_weight_term,
        bits=own.bits,
        group_size=own.group_size,
        symmetric=own.symmetric,
        scale_dtype=own.scale_dtype,
    )
    return np.asarray(found.scales)


def _filled(weight: NDArray[Any], block: int | None) -> NDArray[Any]:
    """Return a weight [M, K] in row-major order, padded with zeros to whole blocks."""
    rows, channels = weight.shape
    filled = np.zeros((rows, padded(channels, block or channels)), weight.dtype)
    filled[:, :channels] = weight
    return filled
