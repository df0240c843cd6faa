"""E2M1 codes and the scales of MXFP4 and NVFP4, on every backend, against their definitions."""

import ml_dtypes
import naive_fp4
import numpy as np
import pytest
from cases import random_hessian, random_matrix

from numbacalib.methods import (
    QuantizedWeight,
    awq_clip,
    awq_scales,
    clipped_share,
    fp4_scales,
    gptq,
    gptq_batch,
    gptq_shared,
    proxy_loss,
    refit_scales,
    rtn,
)
from numbacalib.spec.small_floats import FP4

GRID = {"bits": 4, "symmetric": True, "element": "e2m1"}
FIXED = {**GRID, "scale_dtype": np.float32}
FORMS = ["mxfp4", "nvfp4"]
WIDTHS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def ones(weight, group_size):
    return np.ones((len(weight), weight.shape[1] // group_size), np.float32)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_codes_are_the_nearest_points_and_ties_are_even(backend, dtype):
    points = np.array(naive_fp4.POINTS)
    middles = (points[1:] + points[:-1]) / 2
    around = np.concatenate([points, middles, 0.99 * middles, 1.01 * middles, [7, 100, 0.2]])
    weight = np.concatenate([around, -around])[None].astype(dtype)
    size = weight.shape[1]
    found = backend.call(rtn, weight, group_size=size, scales=ones(weight, size), **FIXED)
    wide = weight.astype(np.float64)
    expected = np.vectorize(naive_fp4.code_of)(wide)
    np.testing.assert_array_equal(found.codes, expected)
    nearest = wide.astype(np.float32).clip(-6, 6).astype(ml_dtypes.float4_e2m1fn)
    np.testing.assert_array_equal(found.dequantize(), nearest.astype(np.float32))


def test_every_code_stands_for_its_point(backend):
    codes = np.arange(16, dtype=np.uint8)[None]
    weight = QuantizedWeight(
        codes,
        np.array([[0.25]], np.float32),
        np.zeros((1, 1), np.uint8),
        bits=4,
        group_size=16,
        symmetric=True,
        element="e2m1",
    )
    values = backend.call(QuantizedWeight.dequantize, weight)
    np.testing.assert_array_equal(values[0], [naive_fp4.point(code) / 4 for code in range(16)])


@pytest.mark.parametrize("form", FORMS)
def test_numbers_of_scales_are_those_of_their_formats(form):
    scales = FP4[form].scales
    kind = {"mxfp4": ml_dtypes.float8_e8m0fnu, "nvfp4": ml_dtypes.float8_e4m3fn}[form]
    codes = np.arange(len(scales.values), dtype=np.uint8)
    np.testing.assert_array_equal(scales.values, codes.view(kind).astype(np.float32))
    np.testing.assert_array_equal(scales.values, naive_fp4.scale_codes(form))


@pytest.mark.parametrize("form", FORMS)
def test_scales_span_their_groups(backend, form):
    size = naive_fp4.GROUPS[form]
    weight = random_matrix(1, (9, 3 * size), np.float32) * np.geomspace(1e-3, 2, 9)[:, None]
    weight[2, :size] = 0
    weight = weight.astype(np.float32)
    found = backend.call(fp4_scales, weight, form, search=False)
    divisor = np.float32(naive_fp4.global_scale(form, weight))
    assert found.global_scale == (None if form == "mxfp4" else divisor)
    values = naive_fp4.scale_codes(form)
    groups = np.abs(weight.reshape(9, 3, size)).max(axis=2)
    for i, g in np.ndindex(9, 3):
        code = naive_fp4.first_code(form, float(groups[i, g] * divisor))
        assert found.scales[i, g] == np.float32(values[code]) / divisor


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("by", ["hessian", "importance", "row importance", "nothing"])
def test_no_scale_near_a_chosen_one_loses_less(backend, form, by):
    size = naive_fp4.GROUPS[form]
    weight = random_matrix(3, (12, 2 * size), np.float32)
    weight[:, ::size] *= 2  # a larger weight that it may pay to clip
    rng = np.random.default_rng(4)
    blocks = {
        "hessian": random_hessian(5, 2 * size).astype(np.float32),
        "importance": rng.uniform(0.1, 3, 2 * size).astype(np.float32),
        "row importance": rng.uniform(0.1, 3, weight.shape).astype(np.float32),
    }
    given = {by.rpartition(" ")[2]: blocks[by]} if by in blocks else {}
    found = backend.call(fp4_scales, weight, form, **given)
    divisor = np.float32(naive_fp4.global_scale(form, weight))
    values = [np.float32(value) / divisor for value in naive_fp4.scale_codes(form)]
    kept = 0
    for i, g in np.ndindex(12, 2):
        run = slice(g * size, (g + 1) * size)
        own = np.eye(size)
        if by == "hessian":
            own = blocks[by][run, run].astype(np.float64)
        if by in ("importance", "row importance"):
            own = np.diag(blocks[by][..., run] if by == "importance" else blocks[by][i, run])
        group = weight[i, run].astype(np.float64)
        largest = float(np.abs(weight[i, run]).max() * divisor)
        first = naive_fp4.first_code(form, largest)
        below, above = (1, 1) if form == "mxfp4" else (4, 6)
        codes = range(max(first - below, 0), min(first + above, len(values) - 1) + 1)
        losses = {values[code]: naive_fp4.loss(group, float(values[code]), own) for code in codes}
        chosen = found.scales[i, g]
        assert chosen in losses
        assert losses[chosen] <= min(losses.values()) * (1 + 1e-4)
        kept += chosen == values[first]
    assert kept < 24  # a search that changes nothing would prove nothing


def layer(seed, rows=4, channels=64):
    return random_matrix(seed, (rows, channels)), random_hessian(seed, channels)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", [{}, {"act_order": "desc", "static_groups": True}])
def test_gptq_spreads_errors_on_scales_as_they_are_stored(backend, form, order):
    weight, hessian = layer(7)
    size = naive_fp4.GROUPS[form]
    scales = backend.call(fp4_scales, weight, form, hessian=hessian).scales
    options = {"group_size": size, "scales": scales, "percdamp": 0.0, **FIXED}
    found = backend.call(gptq, weight, hessian, **options, **order)
    visits = np.argsort(-np.diagonal(hessian), kind="stable") if order else None
    expected = naive_fp4.gptq(weight, hessian, scales, size, visits)
    np.testing.assert_array_equal(found.codes, expected)
    np.testing.assert_array_equal(found.scales, scales)
    assert (found.zeros == 0).all()
    rounded = backend.call(rtn, weight, group_size=size, scales=scales, **FIXED)
    assert proxy_loss(weight, found, hessian) < proxy_loss(weight, rounded, hessian)


def test_scales_are_found_where_none_are_given(backend):
    """The largest weight of a group is 6, as compensated so far, and scales are rounded as stored."""
    weight, hessian = layer(8, channels=32)
    found = backend.call(gptq, weight, hessian, group_size=16, scale_dtype=np.float16, **GRID)
    first = np.abs(weight[:, :16]).max(axis=1) / 6
    np.testing.assert_array_equal(found.scales[:, 0], first.astype(np.float16))
    rounded = backend.call(rtn, weight, group_size=16, scale_dtype=np.float16, **GRID)
    groups = np.abs(weight.reshape(4, 2, 16)).max(axis=2) / 6
    np.testing.assert_array_equal(rounded.scales, groups.astype(np.float16))
    assert (rounded.zeros == 0).all()
    assert proxy_loss(weight, found, hessian) < proxy_loss(weight, rounded, hessian)


def test_a_batch_and_layers_that_share_a_hessian_give_what_each_gives_alone(backend):
    layers = [layer(seed, 2, 32) for seed in (9, 10)]
    weights, hessians = (np.stack(each).astype(np.float32) for each in zip(*layers, strict=True))
    scales = np.stack([fp4_scales(weight, "mxfp4").scales for weight in weights])
    options = {"group_size": 32, **FIXED}
    arrays = map(backend.array, (weights, hessians))
    together = gptq_batch(*arrays, scales=backend.array(scales), **options)
    named = {"q": backend.array(weights[0]), "k": backend.array(weights[1])}
    own = {"q": backend.array(scales[0]), "k": backend.array(scales[1])}
    shared = gptq_shared(named, backend.array(hessians[0]), scales=own, **options)
    for e, (name, batched) in enumerate(zip(named, together, strict=True)):
        alone = backend.call(gptq, weights[e], hessians[e], scales=scales[e], **options)
        assert batched == alone
        first = backend.call(gptq, weights[e], hessians[0], scales=scales[e], **options)
        assert shared[name] == first


def test_awq_and_measures_know_the_points(backend):
    weight, hessian = (array.astype(np.float32) for array in layer(11, channels=32))
    magnitude = np.sqrt(np.diagonal(hessian)).copy()
    options = {"group_size": 16, "scale_dtype": np.float32, **GRID}
    found = awq_scales(
        [backend.array(weight)], *map(backend.array, (hessian, magnitude)), **options
    )
    rounded = rtn(weight, **options)
    np.testing.assert_allclose(found.identity_loss, proxy_loss(weight, rounded, hessian), rtol=1e-4)
    assert found.loss < found.identity_loss
    clipped = backend.call(awq_clip, weight, hessian, **options)
    assert proxy_loss(weight, clipped, hessian) < found.identity_loss
    half = rtn(weight, group_size=16, scales=rounded.scales / 2, **FIXED)
    past = np.abs(weight / np.repeat(half.scales, 16, axis=1)) > 8  # a step of 2 past 6
    assert 0 < past.mean() == backend.call(clipped_share, weight, half)


def test_errors_name_the_argument():
    weight, hessian = layer(12)
    for options, message in (
        ({"element": "e3m0"}, "element: expected int or e2m1, got 'e3m0'"),
        ({"element": "e2m1", "bits": 3}, "bits: expected 4 with element e2m1, got 3"),
        ({"element": "e2m1", "symmetric": False}, "symmetric: expected True with element e2m1"),
    ):
        with pytest.raises(ValueError, match=message):
            rtn(weight, group_size=16, **({"bits": 4, "symmetric": True} | options))
    with pytest.raises(ValueError, match="form: expected mxfp4 or nvfp4, got 'fp4'"):
        fp4_scales(weight, "fp4")
    with pytest.raises(ValueError, match="weight: expected K a multiple of 32, got 24"):
        fp4_scales(weight[:, :24], "mxfp4")
    both = {"hessian": hessian, "importance": np.ones(64)}
    with pytest.raises(ValueError, match="importance: expected None with a Hessian"):
        fp4_scales(weight, "mxfp4", **both)
    found = rtn(weight, group_size=16, **GRID)
    with pytest.raises(ValueError, match="quantized: expected integer codes, got e2m1"):
        refit_scales(weight, found, hessian)
