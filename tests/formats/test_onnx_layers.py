"""Layers as ONNX's two operators store them: what is written is read back, to the bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbacalib.formats import dequantize_linear, matmul_nbits
from numbacalib.methods import QuantizedWeight


@st.composite
def layers(draw):
    """A weight of whole blocks of any size, and K, which may cut the last one short."""
    bits, symmetric = draw(st.sampled_from([2, 4, 8])), draw(st.booleans())
    rows, groups = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    block = draw(st.sampled_from([16, 32, 64, 128, 256]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    zeros = np.full((rows, groups), 1 << (bits - 1), np.uint8)
    if not symmetric:
        zeros = rng.integers(0, 1 << bits, (rows, groups), np.uint8)
    scales = rng.uniform(0.01, 1, (rows, groups))
    dtype = draw(st.sampled_from([np.float32, np.float16]))
    channels = groups * block - draw(st.integers(0, block - 1))
    codes = rng.integers(0, 1 << bits, (rows, groups * block), np.uint8)
    codes[:, channels:] = zeros[:, -1:]
    return QuantizedWeight(codes, scales.astype(dtype), zeros, bits, block, symmetric), channels


@given(layers())
def test_matmul_nbits(case):
    layer, channels = case
    packed = matmul_nbits.pack(layer)
    assert matmul_nbits.unpack(packed, layer.bits, layer.group_size) == layer
    size = sum(part.nbytes for part in packed if part is not None)
    shape, item = (len(layer.codes), channels), layer.scales.itemsize
    sizes = layer.bits, layer.group_size, layer.symmetric, item
    assert matmul_nbits.packed_bytes(shape, *sizes) == size


@given(layers(), st.booleans())
def test_real_zeros_of_matmul_nbits(case, whole):
    """Also such as are whole numbers; at 8 bits ONNX Runtime has none."""
    layer, channels = case
    zeros = layer.zeros + (0 if whole else 0.375)
    layer = replace(layer, zeros=zeros.astype(np.float32), symmetric=False)
    if layer.bits == 8:
        with pytest.raises(
            ValueError, match="zeros: expected integers, or at 2 and 4 bits numbers"
        ):
            matmul_nbits.pack(layer)
        return
    packed = matmul_nbits.pack(layer)
    assert packed.zero_points.dtype == layer.scales.dtype
    assert matmul_nbits.unpack(packed, layer.bits, layer.group_size) == layer
    sizes = (len(layer.codes), channels), layer.bits, layer.group_size, False
    size = matmul_nbits.packed_bytes(*sizes, layer.scales.itemsize, real=True)
    assert size == sum(part.nbytes for part in packed)


@given(layers(), st.booleans())
def test_dequantize_linear(case, transposed):
    """And values are those of the operator's description."""
    layer, channels = case
    stored = dequantize_linear.pack(layer, channels, transposed=transposed)
    assert dequantize_linear.unpack(stored, layer.group_size, transposed=transposed) == layer
    x, scale, zero = (
        None if part is None else (part.T if transposed else part).astype(np.float32)
        for part in stored
    )
    assert x.shape == (len(layer.codes), channels)
    repeats = (np.repeat(each, layer.group_size, 1)[:, :channels] for each in (scale, 0 * scale))
    scales, zeros = repeats
    if zero is not None:
        zeros = np.repeat(zero, layer.group_size, 1)[:, :channels]
    expected = (x - zeros) * scales
    np.testing.assert_allclose(layer.dequantize()[:, :channels], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((4, 32), np.int32)}, "x: expected a matrix of integers of 2, 4 or 8 bits"),
        ({"scale": np.ones((4, 3), np.float32)}, "scale: expected 4 x 2, got"),
        ({"zero_point": np.ones((4, 1), np.uint8)}, "zero_point: expected 4 x 2, got"),
        ({"x": np.zeros((4, 32), np.int8)}, "zero_point: expected 0 of signed codes"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    parts = {
        "x": np.zeros((4, 32), np.uint8),
        "scale": np.ones((4, 2), np.float32),
        "zero_point": np.ones((4, 2), np.uint8),
    }
    stored = dequantize_linear.DequantizedLinear(**(parts | change))
    with pytest.raises(ValueError, match=message):
        dequantize_linear.unpack(stored, 16, transposed=False)
