"""Methods on grids that a format or a caller has fixed: scales of any sign, integer and real zeros."""

import ml_dtypes
import naive_methods
import numpy as np
import pytest
from test_methods_gptq import layer

from numbacalib.methods import (
    LayerSettings,
    gptq,
    gptq_batch,
    gptq_shared,
    quantize_layers,
    rtn,
)
from numbacalib.methods.settings import FoundGrids
from numbacalib.statistics import InputStatistics

GRIDS = ["real", "integer", "symmetric"]
ORDERS = [{}, {"act_order": "desc"}, {"act_order": "desc", "static_groups": True}]


def grids(kind, rows, groups, bits, dtype=np.float32, seed=3):
    """Options of a method, and the zeros as unsigned codes have them; a third of the scales negative."""
    rng = np.random.default_rng(seed)
    signs = np.where(rng.uniform(size=(rows, groups)) < 1 / 3, -1, 1)
    scales = (signs * rng.uniform(2, 4, (rows, groups)) / 2**bits).astype(dtype)
    options = {"bits": bits, "scales": scales, "scale_dtype": dtype, "symmetric": False}
    if kind == "symmetric":
        return options | {"symmetric": True}, np.full((rows, groups), 2 ** (bits - 1))
    zeros = rng.uniform(-1, 2**bits, (rows, groups)).astype(np.float32)
    if kind == "integer":
        zeros = np.clip(np.rint(zeros), 0, 2**bits - 1).astype(np.uint8)
    return options | {"zeros": zeros}, zeros


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_rtn_takes_the_nearest_point_of_a_given_grid(backend, kind, bits, dtype):
    weight, _ = layer(5)
    options, zeros = grids(kind, 4, 3, bits, dtype)
    quantized = backend.call(rtn, weight, group_size=8, **options)
    expected, values = naive_methods.fixed_grids(weight, None, options["scales"], zeros, bits)
    np.testing.assert_array_equal(quantized.codes, expected)
    np.testing.assert_array_equal(quantized.scales, options["scales"])
    np.testing.assert_array_equal(quantized.zeros, zeros)
    assert quantized.zeros.dtype == (np.float32 if kind == "real" else np.uint8)
    np.testing.assert_allclose(quantized.dequantize(), values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", GRIDS)
def test_gptq_spreads_errors_on_a_given_grid(backend, kind, order):
    weight, hessian = layer(5)
    options, zeros = grids(kind, 4, 3, 3)
    quantized = backend.call(gptq, weight, hessian, group_size=8, **options, **order)
    visits = naive_methods.descending(np.diagonal(hessian)) if order else None
    codes, values = naive_methods.fixed_grids(
        weight, hessian, options["scales"], zeros, 3, order=visits
    )
    np.testing.assert_array_equal(quantized.codes, codes)
    assert quantized.g_idx is None  # groups are what was given, in any order
    np.testing.assert_allclose(quantized.dequantize(), values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", GRIDS)
def test_a_batch_on_given_grids_gives_what_each_layer_gives_alone(backend, kind):
    layers = [layer(seed) for seed in (5, 6)]
    options, _ = grids(kind, 8, 3, 4)
    arrays = {key: value for key, value in options.items() if key in ("scales", "zeros")}
    plain = {key: value for key, value in options.items() if key not in arrays} | {"group_size": 8}
    weights, hessians = (np.stack(each) for each in zip(*layers, strict=True))
    stacks = {key: value.reshape(2, 4, 3) for key, value in arrays.items()}
    moved = {key: backend.array(value) for key, value in stacks.items()}
    found = gptq_batch(backend.array(weights), backend.array(hessians), **plain, **moved)
    for e, together in enumerate(found):
        own = {key: value[e] for key, value in stacks.items()}
        alone = backend.call(gptq, *layers[e], **plain, **own)
        np.testing.assert_array_equal(backend.numpy(together.codes), alone.codes)
        np.testing.assert_array_equal(backend.numpy(together.zeros), alone.zeros)


def test_a_minimum_is_a_real_zero(backend):
    """``value = scale * code - minimum``, as GGUF's k-quants have it, also far from 0."""
    weight = np.linspace(-9, -7, 16, dtype=np.float32).reshape(1, 16)
    scale, minimum = np.float32(2 / 15), np.float32(9)
    options = {"scales": np.array([[scale]]), "zeros": np.array([[minimum / scale]])}
    found = backend.call(rtn, weight, bits=4, group_size=16, scale_dtype=np.float32, **options)
    np.testing.assert_array_equal(found.codes[0], np.arange(16))
    np.testing.assert_allclose(found.dequantize(), weight, rtol=1e-6)


FLOAT = np.ones((4, 3), np.float16)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scales": FLOAT}, ValueError, r"zeros: expected \[4, 3\] with scales"),
        ({"zeros": FLOAT}, ValueError, "zeros: expected None without scales"),
        ({"scales": FLOAT, "zeros": FLOAT, "symmetric": True}, ValueError, "zeros: expected None"),
        ({"scales": FLOAT[:, :2], "zeros": FLOAT}, ValueError, r"scales: expected shape \[4, 3\]"),
        ({"scales": FLOAT, "zeros": FLOAT[:2]}, ValueError, r"zeros: expected shape \[4, 3\]"),
        (
            {"scales": FLOAT, "zeros": np.zeros((4, 2), np.uint8)},
            ValueError,
            r"zeros: expected shape \[4, 3\]",
        ),
        (
            {"scales": FLOAT.astype(np.float32), "zeros": FLOAT},
            TypeError,
            "scales: expected scale_dtype float16, got float32",
        ),
        (
            {"scales": 0 * FLOAT, "zeros": FLOAT},
            ValueError,
            "scales: expected numbers other than 0",
        ),
        ({"scales": np.inf * FLOAT, "zeros": FLOAT}, ValueError, "scales: expected finite values"),
        ({"scales": FLOAT, "zeros": np.nan * FLOAT}, ValueError, "zeros: expected finite values"),
        (
            {"scales": FLOAT, "zeros": np.full((4, 3), 2e6, np.float32)},
            ValueError,
            r"zeros: expected magnitudes below 1.05e\+06, got 2000000.0 at \[0, 0\]",
        ),
        ({"scales": FLOAT, "zeros": FLOAT.astype(np.int64)}, TypeError, "zeros: expected dtype"),
    ],
)
def test_errors_name_the_argument(options, error, message):
    weight, hessian = layer(5)
    settings = {"bits": 4, "group_size": 8} | options
    with pytest.raises(error, match=message):
        rtn(weight, **settings)
    with pytest.raises(error, match=message):
        gptq(weight, hessian, **settings)


def test_errors_of_a_batch_name_the_argument():
    weight, hessian = layer(5)
    with pytest.raises(ValueError, match=r"scales: expected shape \[1, M, G\], got \[4, 3\]"):
        gptq_batch(weight[None], hessian[None], bits=4, group_size=8, scales=FLOAT, zeros=FLOAT)


@pytest.mark.parametrize("kind", GRIDS)
def test_layers_that_share_a_hessian_have_given_grids_of_their_own(backend, kind):
    weight, hessian = layer(5)
    weights = {"one": weight, "two": weight[:3] * 2}
    found_alone, given, plain = {}, {"scales": {}, "zeros": {}}, {}
    for seed, (name, own) in enumerate(weights.items()):
        options, _ = grids(kind, len(own), 3, 4, seed=seed)
        for key, arrays in given.items():
            if key in options:
                arrays[name] = backend.array(options[key])
        plain = {key: value for key, value in options.items() if key not in given}
        found_alone[name] = backend.call(gptq, own, hessian, group_size=8, **options)
    moved = {name: backend.array(own) for name, own in weights.items()}
    mappings = {key: arrays for key, arrays in given.items() if arrays}
    found = gptq_shared(moved, backend.array(hessian), group_size=8, **plain, **mappings)
    for name, alone in found_alone.items():
        np.testing.assert_array_equal(backend.numpy(found[name].codes), alone.codes)
        np.testing.assert_array_equal(backend.numpy(found[name].scales), alone.scales)
        np.testing.assert_array_equal(backend.numpy(found[name].zeros), alone.zeros)


def test_given_grids_of_a_shared_hessian_are_of_every_weight():
    weight, hessian = layer(5)
    options = {"bits": 4, "group_size": 8, "symmetric": True, "scales": {"one": FLOAT}}
    with pytest.raises(ValueError, match="scales: expected one for each weight, none for two"):
        gptq_shared({"one": weight, "two": weight}, hessian, **options)


@pytest.mark.parametrize("key", ["hessian", "importance"])
def test_weights_that_share_a_hessian_are_not_called_like_an_argument(key):
    weight, hessian = layer(5)
    with pytest.raises(ValueError, match=f"weights: expected other keys .*, got '{key}'"):
        gptq_shared({"one": weight, key: weight}, hessian, bits=4, group_size=8)


def test_an_error_of_a_format_names_the_layer_that_it_is_about():
    weights = {"q": np.ones((4, 8), np.float32), "k": np.full((4, 8), np.nan, np.float32)}
    statistics = InputStatistics(8)
    statistics.update(np.eye(8, dtype=np.float32))

    def find(weight, settings):
        return FoundGrids(
            np.ones((len(weight), 1), np.float16), np.zeros((len(weight), 1), np.uint8)
        )

    settings = LayerSettings(bits=4, group_size=8, find_grid=find, static_groups=True)
    with pytest.raises(
        ValueError, match=r"^k: weight: expected finite values, got nan at \[0, 0\]"
    ):
        quantize_layers(weights, statistics, settings)
