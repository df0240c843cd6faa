"""Blocks against ggml's own code, as libgguf has it: bytes, and the weighted error of the search."""

import libgguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from numbacalib.formats.gguf import nearest
from numbacalib.formats.gguf_blocks import BLOCK_TYPES, pack_blocks, unpack_blocks
from numbacalib.formats.gguf_mxfp4 import pack_mxfp4, unpack_mxfp4
from numbacalib.methods import fp4_scales, rtn

TYPES = sorted(BLOCK_TYPES)


def weights(kind, seed):
    rng = np.random.default_rng(seed)
    shape = 32, 768
    made = {
        "normal": rng.normal(size=shape),
        "heavy": rng.standard_t(4, size=shape),
        "laplace": rng.laplace(size=shape),
    }
    return (0.02 * made[kind]).astype(np.float32), rng.lognormal(sigma=1.5, size=shape[1])


def read(stored, name):
    number, shape = GGMLQuantizationType[name], (len(stored), -1)
    return libgguf.dequantize_rows(stored, number).reshape(shape)


@pytest.mark.parametrize("name", TYPES)
def test_ggml_reads_what_we_write_and_we_what_it_writes(name):
    weight, importance = weights("normal", 0)
    ours = nearest(weight, name, importance)
    values = ours.dequantize(BLOCK_TYPES[name].grid)
    stored = pack_blocks(ours, name)
    np.testing.assert_allclose(read(stored, name), values, rtol=1e-6, atol=1e-8)
    again = libgguf.quantize_rows(values, GGMLQuantizationType[name], importance)
    again = read(np.asarray(again).view(np.uint8).reshape(stored.shape), name)
    moved, rounded = ((importance * each**2).sum() for each in (again - values, values - weight))
    assert moved < 1.5 * rounded  # by scales of its own it is rounded once more, at most
    theirs = libgguf.quantize_rows(weight, GGMLQuantizationType[name], importance)
    theirs = np.asarray(theirs).view(np.uint8).reshape(len(weight), -1)
    back = unpack_blocks(theirs, name)
    np.testing.assert_array_equal(pack_blocks(back, name), theirs)
    values = back.dequantize(BLOCK_TYPES[name].grid)
    np.testing.assert_allclose(values, read(theirs, name), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kind", ["normal", "heavy", "laplace"])
@pytest.mark.parametrize("name", TYPES)
def test_the_weighted_error_is_below_ggmls(name, kind, weighted):
    """Of the same rows with the same importance, or with none on both sides.

    Large weights count more, as in ggml's own search.
    """
    weight, importance = weights(kind, 1)
    given = importance if weighted else None
    ours = nearest(weight, name, given).dequantize(BLOCK_TYPES[name].grid)
    stored = libgguf.quantize_rows(weight, GGMLQuantizationType[name], given)
    theirs = read(np.asarray(stored).view(np.uint8).reshape(len(weight), -1), name)
    blocks = weight.reshape(len(weight), -1, 256)
    spread = 2 * (blocks**2).mean(axis=2, keepdims=True)
    factors = np.sqrt(spread + blocks**2).reshape(weight.shape)
    factors = factors * importance if weighted else factors
    error, their_error = ((factors * (each - weight) ** 2).sum() for each in (ours, theirs))
    assert error < their_error


@pytest.mark.parametrize("kind", ["normal", "heavy", "laplace"])
def test_mxfp4(kind):
    """Ours are read to the bit, and so are theirs; a search loses less than their scales."""
    weight, _ = weights(kind, 2)
    grid = {"bits": 4, "group_size": 32, "symmetric": True, "element": "e2m1"}
    scales = fp4_scales(weight, "mxfp4").scales
    ours = rtn(weight, scales=scales, scale_dtype=np.float32, **grid)
    stored = pack_mxfp4(ours)
    np.testing.assert_array_equal(read(stored, "MXFP4"), ours.dequantize())
    assert unpack_mxfp4(stored) == ours
    theirs = libgguf.quantize_rows(weight, GGMLQuantizationType.MXFP4, None)
    theirs = np.asarray(theirs).view(np.uint8).reshape(len(weight), -1)
    back = unpack_mxfp4(theirs)
    np.testing.assert_array_equal(back.dequantize(), read(theirs, "MXFP4"))
    np.testing.assert_array_equal(pack_mxfp4(back), theirs)
    errors = [((each.dequantize() - weight) ** 2).sum() for each in (ours, back)]
    assert errors[0] < errors[1]
