"""MatMulNBits packed, against its description bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from clients.onnx_models import RNG, assert_close

from numbacalib.formats.matmul_nbits import pack, unpack
from numbacalib.methods import QuantizedWeight


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
