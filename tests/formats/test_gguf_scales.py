"""Scales of blocks: found for weights, and taken apart to the bit."""

from dataclasses import replace

import naive_blocks
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbacalib.formats.gguf_blocks import BLOCK_TYPES, BlockWeight
from numbacalib.formats.gguf_scales import BlockFinder, split_scales
from numbacalib.methods import LayerSettings, quantize_layer, rtn
from numbacalib.methods.block_scales import block_scales
from numbacalib.statistics import InputStatistics

TYPES = sorted(BLOCK_TYPES)
KINDS = ("normal", "heavy", "constant", "sparse", "positive", "tiny", "zeros")


def weights(kind, rows, channels, seed):
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(rows, channels)) * 0.05
    made = {
        "normal": normal,
        "heavy": rng.standard_t(2, size=(rows, channels)) * 0.02,
        "constant": np.full((rows, channels), -0.75) + 1e-6 * normal,
        "sparse": normal * (rng.uniform(size=normal.shape) < 0.05),
        "positive": np.abs(normal) + 0.5,
        "tiny": normal * 1e-7,
        "zeros": np.zeros((rows, channels)),
    }
    return made[kind].astype(np.float32)


def nearest(weight, name, importance=None):
    """Round to the nearest value of searched blocks."""
    grid = BLOCK_TYPES[name].grid
    stored = block_scales(weight, grid, importance)
    scales, zeros = stored.grids(grid)
    options = {"scales": scales, "zeros": zeros} if grid.minima else {"scales": scales}
    shape = {"bits": grid.bits, "group_size": grid.group_size, "symmetric": not grid.minima}
    return rtn(weight, **shape, scale_dtype=np.float32, **options), stored


@pytest.mark.parametrize("name", TYPES)
@given(st.sampled_from(KINDS), st.integers(1, 18), st.integers(0, 2**32 - 1))
def test_what_is_found_comes_back_from_scales_and_zeros(name, kind, rows, seed):
    """A method's result has the products alone: the split gives the same products, to the bit."""
    grid = BLOCK_TYPES[name].grid
    quantized, stored = nearest(weights(kind, rows, grid.values, seed), name)
    back = split_scales(quantized.scales, quantized.zeros, grid)
    for mine, theirs in zip(back.products(grid), stored.products(grid), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    own = BlockWeight(quantized.codes, back).dequantize(grid)
    largest = np.abs(own).max()
    np.testing.assert_allclose(quantized.dequantize(), own, rtol=1e-6, atol=3e-7 * largest)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_within_that_of_a_plain_grid(name, kind):
    """Against min-max scales of each group by itself, which no block has to hold."""
    grid = BLOCK_TYPES[name].grid
    weight = weights(kind, 8, 2 * grid.values, 7)
    importance = np.random.default_rng(1).lognormal(size=weight.shape[1])
    quantized, _ = nearest(weight, name, importance)
    factors = naive_blocks.factors(weight, grid.values, importance)
    error = (factors * (quantized.dequantize() - weight) ** 2).sum()
    plain = naive_blocks.plain_error(weight, grid.bits, grid.group_size, grid.minima, factors)
    floor = 1e-7 * (factors * weight**2).sum() + weight.size * factors.max() * 2.0**-48
    assert error <= 1.2 * plain + floor


@pytest.mark.parametrize("name", TYPES)
def test_importance_moves_the_error_to_where_it_counts_less(name):
    grid = BLOCK_TYPES[name].grid
    weight = weights("heavy", 16, 2 * grid.values, 3)
    importance = np.ones(weight.shape[1])
    importance[: grid.values] = 100
    importance[::3] *= 1e-4

    def error(given):
        quantized, _ = nearest(weight, name, given)
        return (importance * (quantized.dequantize() - weight) ** 2).sum()

    assert error(importance) < error(None)
    dead = np.zeros(weight.shape[1])
    np.testing.assert_allclose(error(dead), error(None), rtol=1e-6)  # no importance is none at all


def test_the_search_reads_any_strides_and_dtypes():
    grid = BLOCK_TYPES["Q4_K"].grid
    weight = weights("normal", 6, 512, 0)
    expected = block_scales(weight, grid)
    for view in (np.asfortranarray(weight), np.repeat(weight, 2, 1)[:, ::2], weight.astype(float)):
        found = block_scales(view, grid)
        for mine, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        (np.ones((2, 100)), {}, "weight: expected K a multiple of 256, got 100"),
        (np.full((2, 256), np.nan), {}, "weight: expected finite values"),
        (np.full((2, 256), 1e9), {}, "weight: expected blocks whose scales fit into float16"),
        (np.ones((2, 256)), {"importance": -np.ones(256)}, "importance: expected"),
        (np.ones((2, 256)), {"importance": np.ones(2)}, "importance: expected shape"),
    ],
)
def test_errors_name_the_argument(weight, options, message):
    with pytest.raises(ValueError, match=message):
        block_scales(weight, BLOCK_TYPES["Q6_K"].grid, **options)


@pytest.mark.parametrize(
    ("name", "scales", "zeros", "message"),
    [
        ("Q4_K", np.linspace(1, 2, 8), np.zeros(8), "scales: expected a float16 times integers"),
        ("Q4_0", [0.1], [8], "scales: expected a float16 times integers up to 1"),
        ("Q4_0", [0.5], [7], "zeros: expected 8 in blocks without minima"),
        ("Q4_1", [2049], [3], "scales: expected a float16 times"),
        ("Q4_K", np.ones(8), np.linspace(0, 15, 8), "scales: expected a float16 times integers"),
        ("Q4_K", np.ones(8), [*np.ones(7), -1], "scales: expected a float16 times integers"),
    ],
)
def test_grids_that_blocks_cannot_hold_are_refused(name, scales, zeros, message):
    scales, zeros = (np.array(each, np.float32)[None] for each in (scales, zeros))
    with pytest.raises(ValueError, match=message):
        split_scales(scales, zeros, BLOCK_TYPES[name].grid)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1"])
@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_a_layer_is_quantized_on_the_grids_of_blocks(backend, method, name):
    """On either device: what comes can be stored, and weighs errors by the layer's inputs."""
    grid, rng = BLOCK_TYPES[name].grid, np.random.default_rng(0)
    weight = weights("normal", 3, 32, 0)
    inputs = rng.normal(size=(64, 32)).astype(np.float32) * rng.lognormal(size=32)
    statistics = InputStatistics(32)
    statistics.update(backend.array(inputs.astype(np.float32)))
    settings = LayerSettings(
        method=method,
        bits=grid.bits,
        group_size=grid.group_size,
        symmetric=not grid.minima,
        scale_dtype=np.float32,
        ranges="weighted",
        find_grid=BlockFinder(name),
    )
    quantized, report = quantize_layer("q", backend.array(weight), statistics, settings)
    quantized = quantized.to_host()
    stored = split_scales(quantized.scales, quantized.zeros, grid)
    expected = block_scales(weight, grid, backend.numpy(statistics.mean_square))
    for mine, theirs in zip(stored, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert report.loss < report.rtn_loss or method == "rtn"


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_scales_and_minima_of_one_group_are_refitted_as_blocks_store_them(backend, name):
    grid, rng = BLOCK_TYPES[name].grid, np.random.default_rng(0)
    weight = weights("normal", 8, 64, 0)
    mixed = rng.normal(size=(64, 64)).astype(np.float32) + 0.3
    statistics = InputStatistics(64)
    statistics.update(backend.array(rng.normal(size=(256, 64)).astype(np.float32) @ mixed))
    settings = LayerSettings(
        method="gptq",
        bits=grid.bits,
        group_size=grid.group_size,
        symmetric=not grid.minima,
        scale_dtype=np.float32,
        find_grid=BlockFinder(name),
    )
    losses = []
    for refit in (False, True):
        own = replace(settings, refit=refit)
        quantized, report = quantize_layer("q", backend.array(weight), statistics, own)
        quantized = quantized.to_host()
        stored = split_scales(quantized.scales, quantized.zeros, grid)
        scales, zeros = stored.grids(grid)
        np.testing.assert_array_equal(scales, quantized.scales)
        np.testing.assert_allclose(zeros, quantized.zeros, rtol=1e-6)
        losses.append(report.loss)
    assert losses[1] < 0.995 * losses[0]


def test_scales_that_share_a_block_are_not_refitted():
    settings = LayerSettings(find_grid=BlockFinder("Q4_K"), target="propagated", refit=None)
    assert not settings.refits
    with pytest.raises(ValueError, match="refit: expected False where the format fixes the grid"):
        replace(settings, refit=True).check()
