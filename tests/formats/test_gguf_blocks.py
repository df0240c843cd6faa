"""GGML's blocks against the gguf package, which reads them, and against themselves."""

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbacalib.formats.gguf_blocks import BLOCK_TYPES, BlockWeight, pack_blocks, unpack_blocks
from numbacalib.models.gguf_types import tensor_type
from numbacalib.spec.block_grid import BlockScales

TYPES = sorted(BLOCK_TYPES)


def random_weight(name, rows, blocks, seed):
    """Any codes and any scales that a type can hold."""
    grid, rng = BLOCK_TYPES[name].grid, np.random.default_rng(seed)
    low, high = grid.scale_range
    shape = rows, blocks * grid.groups
    minima = np.zeros((rows, blocks))
    if grid.minima:
        minima = rng.normal(size=(rows, blocks))
    deepest = high if grid.minima else 1
    stored = BlockScales(
        rng.normal(size=(rows, blocks)).astype(np.float16),
        minima.astype(np.float16),
        rng.integers(low, high + 1, shape).astype(np.int8),
        rng.integers(1 if deepest == 1 else 0, deepest + 1, shape).astype(np.uint8),
    )
    codes = rng.integers(0, 1 << grid.bits, (rows, blocks * grid.values))
    return BlockWeight(codes.astype(np.uint8), stored)


@pytest.mark.parametrize("name", TYPES)
def test_blocks_are_as_long_as_ggml_has_them(name):
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    assert (BLOCK_TYPES[name].grid.values, BLOCK_TYPES[name].size) == (values, size)
    kind = tensor_type(gguf.GGMLQuantizationType[name])
    assert (kind.name, kind.values, kind.size) == (name, values, size)


@pytest.mark.parametrize("name", TYPES)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_blocks_come_back_to_the_bit_and_read_as_gguf_reads_them(name, rows, blocks, seed):
    weight = random_weight(name, rows, blocks, seed)
    stored = pack_blocks(weight, name)
    assert stored.shape == (rows, blocks * BLOCK_TYPES[name].size)
    back = unpack_blocks(stored, name)
    np.testing.assert_array_equal(back.codes, weight.codes)
    for mine, theirs in zip(back.stored, weight.stored, strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)
    expected = gguf.dequantize(stored, gguf.GGMLQuantizationType[name])
    values = weight.dequantize(BLOCK_TYPES[name].grid)
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", TYPES)
@given(st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_any_bytes_come_back_to_the_bit(name, blocks, seed):
    size = BLOCK_TYPES[name].size
    stored = np.random.default_rng(seed).integers(0, 256, (2, blocks * size)).astype(np.uint8)
    np.testing.assert_array_equal(pack_blocks(unpack_blocks(stored, name), name), stored)


@pytest.mark.parametrize("name", TYPES)
def test_grids_give_what_is_stored(name):
    """The scales and real zeros on which codes are chosen stand for the values that are read."""
    kind = BLOCK_TYPES[name]
    weight = random_weight(name, 3, 2, 1)
    scales = weight.stored.group_scales
    weight = weight._replace(stored=weight.stored._replace(group_scales=scales + (scales == 0)))
    scale, zero = (
        np.repeat(each, kind.grid.group_size, 1) for each in weight.stored.grids(kind.grid)
    )
    values = weight.dequantize(kind.grid)
    np.testing.assert_allclose((weight.codes - zero) * scale, values, rtol=1e-5, atol=1e-5)
