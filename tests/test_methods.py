import cases
import ml_dtypes
import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbacalib.methods import QuantizedWeight, codebook, gptq, gptq_batch, proxy_loss, rtn

SCALE_DTYPES = (np.float16, ml_dtypes.bfloat16, np.float32)


def stored_as(dtype):
    """Round a scale to what `dtype` stores, through float32, and never to 0."""

    def store(scale):
        rounded = np.asarray(np.float32(scale)).astype(dtype)
        return float(rounded) or float(np.nextafter(rounded, np.asarray(1, dtype)))

    return store


def assert_equals_naive(quantized, expected, bits, symmetric):
    codes, scales, zeros, values = expected
    offset = 2 ** (bits - 1) if symmetric else 0
    np.testing.assert_array_equal(quantized.codes, codes + offset)
    np.testing.assert_array_equal(quantized.scales.astype(np.float64), scales)
    np.testing.assert_array_equal(quantized.zeros, zeros + offset)
    np.testing.assert_allclose(quantized.dequantize(), values, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("method", [rtn, gptq], ids=["rtn", "gptq"])
def test_scales_up_to_the_largest_of_their_dtype(backend, method, dtype, symmetric):
    """Weights of any magnitude have the codes of weights around 1, as all is multiplied by powers of 2."""
    weight = cases.random_matrix(1, (4, 16), np.float32)
    settings = {"bits": 4, "group_size": 8, "symmetric": symmetric, "scale_dtype": dtype}
    arguments = [np.eye(16, dtype=np.float32)] if method is gptq else []

    def quantized(power):
        return backend.call(method, np.ldexp(weight, power), *arguments, **settings)

    expected = quantized(0)
    for power in (-60, 60, 111, 112, 120, 124):
        found = quantized(power)
        np.testing.assert_array_equal(found.codes, expected.codes)
        np.testing.assert_array_equal(
            found.scales.astype(np.float32), np.ldexp(expected.scales.astype(np.float32), power)
        )


@pytest.mark.parametrize(
    "weight",
    [
        np.array([[3.4e38, -3.4e38]], np.float32),  # the span is beyond float32
        np.array([[3 * 3.398e38, 0]]),  # the nearest bfloat16 of a third is 2**128
    ],
    ids=["span", "rounded"],
)
def test_scales_beyond_their_dtype_are_named(backend, weight):
    settings = {"bits": 2, "group_size": 2, "scale_dtype": ml_dtypes.bfloat16}
    expected = r"scale_dtype: scales in bfloat16: expected finite values, got inf at \[0, 0\]"
    with pytest.raises(ValueError, match=expected):
        backend.call(rtn, weight, **settings)
    assert np.isfinite(backend.call(rtn, weight / 2.1, **settings).scales.astype(float)).all()


@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 4),
    group_size=st.integers(1, 9),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    dtype=st.sampled_from((np.float16, np.float32)),
    scale_dtype=st.sampled_from(SCALE_DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_rtn_agrees_with_the_definition(
    backend, rows, groups, group_size, bits, symmetric, dtype, scale_dtype, seed
):
    weight = cases.random_matrix(seed, (rows, groups * group_size), dtype)
    quantized = backend.call(
        rtn,
        weight,
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        scale_dtype=scale_dtype,
    )
    # float32 throughout, as the kernels compute, so that both meet the same ties
    expected = naive.round_to_nearest(weight, bits, group_size, symmetric, stored_as(scale_dtype))
    assert quantized.scales.dtype == scale_dtype
    close = np.isclose(quantized.scales.astype(float), expected[1], rtol=0.01, atol=0)
    assert close.all()
    offset = 2 ** (bits - 1) if symmetric else 0
    step = np.abs(quantized.codes.astype(int) - expected[0] - offset)
    same_grid = np.repeat(quantized.scales.astype(float) == expected[1], group_size, axis=1)
    same_grid &= np.repeat(quantized.zeros == expected[2] + offset, group_size, axis=1)
    assert step[same_grid].max(initial=0) <= 1
    ties = np.abs(np.abs(weight / np.repeat(expected[1], group_size, axis=1)) % 1 - 0.5) < 1e-4
    assert (step[same_grid & ~ties] == 0).all()


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 8), (3, 24), (2, 4), (8, 12)])
def test_gptq_in_float64_agrees_with_the_definition(
    backend, bits, group_size, symmetric, scale_dtype
):
    rows, channels = 5, 24
    if backend.name == "cudasim":
        rows, channels, group_size = 1, 6, group_size // 4
    weight = cases.random_matrix(1, (rows, channels))
    hessian = cases.random_hessian(2, channels)
    quantized = backend.call(
        gptq,
        weight,
        hessian,
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        scale_dtype=scale_dtype,
    )
    report = quantized.report
    factor = naive.gptq_inverse_hessian(hessian)

    def store(scale):
        return float(np.asarray(scale).astype(scale_dtype))

    expected = naive.gptq_quantize_column(weight, factor, bits, group_size, symmetric, store)
    assert_equals_naive(quantized, expected, bits, symmetric)
    damped = hessian + report.damping * np.eye(channels)
    assert report.loss == pytest.approx(naive.proxy_loss(weight, expected[3], damped), rel=1e-6)
    assert report.damping == pytest.approx(0.01 * np.diagonal(hessian).mean())


def test_gptq_beats_rounding(backend):
    rows, channels = (4, 12) if backend.name == "cudasim" else (32, 64)
    weight = cases.random_matrix(1, (rows, channels), np.float32)
    hessian = cases.random_hessian(2, channels).astype(np.float32)
    settings = {"bits": 3, "group_size": channels // 4}
    losses = [
        backend.call(proxy_loss, weight, quantized, hessian)
        for quantized in (
            backend.call(gptq, weight, hessian, **settings),
            backend.call(rtn, weight, **settings),
        )
    ]
    assert losses[0] < 0.7 * losses[1]


def test_gptq_does_not_depend_on_the_hessians_scale():
    weight = cases.random_matrix(1, (4, 16))
    hessian = cases.random_hessian(2, 16)
    first, second = (gptq(weight, h, bits=4, group_size=8) for h in (hessian, hessian * 1024))
    np.testing.assert_array_equal(first.codes, second.codes)


def test_dead_channels_become_zero(backend):
    weight = cases.random_matrix(1, (4, 8), np.float32)
    kept = weight.copy()
    hessian = cases.random_hessian(2, 8).astype(np.float32)
    hessian[3] = hessian[:, 3] = 0
    quantized = backend.call(gptq, weight, hessian, bits=4, group_size=4)
    report = quantized.report
    assert report.dead == 1
    np.testing.assert_array_equal(quantized.dequantize()[:, 3], 0)
    np.testing.assert_array_equal(weight, kept)


def test_methods_give_one_kind_of_weight(backend):
    """Where inputs do not go together, GPTQ rounds to nearest; a report is no part of the weight."""
    channels = 6 if backend.name == "cudasim" else 24
    weight = cases.random_matrix(1, (3, channels), np.float32)
    hessian = np.eye(channels, dtype=np.float32)
    nearest = backend.call(rtn, weight, bits=4, group_size=None)
    solved = backend.call(gptq, weight, hessian, bits=4, group_size=None)
    (batched,) = backend.call(gptq_batch, weight[None], hessian[None], bits=4, group_size=None)
    assert nearest == solved == batched
    assert nearest.report is None
    assert solved.report.tries == batched.report.tries == 1


def test_whole_row_is_one_group(backend):
    channels = 34 if backend.name == "cudasim" else 341
    weight = cases.random_matrix(1, (3, channels), np.float32)
    hessian = cases.random_hessian(2, channels).astype(np.float32)
    assert backend.call(rtn, weight, bits=4, group_size=None).scales.shape == (3, 1)
    quantized = backend.call(gptq, weight, hessian, bits=4, group_size=None)
    assert quantized.scales.shape == (3, 1)
    assert quantized.group_size == channels


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(("rows", "channels"), [(3, 8), (1, 1), (37, 1100)])
def test_proxy_loss_agrees_with_the_definition(backend, rows, channels, dtype):
    if backend.name == "cudasim":
        rows, channels = -(-rows // 12), -(-channels // 60)
    weight = cases.random_matrix(1, (rows, channels), dtype)
    hessian = cases.random_hessian(2, channels).astype(dtype)
    quantized = rtn(weight, bits=2, group_size=None)
    expected = naive.proxy_loss(weight, quantized.dequantize(), hessian)
    loss = backend.call(proxy_loss, weight, quantized, hessian)
    assert loss == pytest.approx(expected, rel=1e-4)
    scales = np.linspace(0.5, 2, channels, dtype=np.float32)
    divided = (weight.astype(np.float64) - quantized.dequantize()) / scales
    expected = naive.proxy_loss(divided, 0 * divided, hessian)
    loss = backend.call(proxy_loss, weight, quantized, hessian, scales)
    assert loss == pytest.approx(expected, rel=1e-4)


def test_proxy_loss_by_halves_of_the_errors(backend, monkeypatch):
    """As many errors are multiplied on a GPU: their rows by any power of two, dead channels beside."""
    if backend.name != "numpy":
        from numbacalib.ops.proxy_loss import gpu

        monkeypatch.setattr(gpu, "FEW_ERRORS", 0)
    weight = cases.random_matrix(1, (12, 40), np.float32)
    weight *= np.logspace(-30, 12, 12, dtype=np.float32)[:, None]
    weight[3] = 0
    hessian = cases.random_hessian(2, 40).astype(np.float32)
    hessian[5] = hessian[:, 5] = 0
    quantized = rtn(weight, bits=3, group_size=8, scale_dtype=np.float32)
    expected = naive.proxy_loss(weight, quantized.dequantize(), hessian)
    assert backend.call(proxy_loss, weight, quantized, hessian) == pytest.approx(expected, rel=1e-3)


def test_proxy_loss_of_a_codebook():
    weight = cases.random_matrix(1, (3, 8), np.float32)
    hessian = cases.random_hessian(2, 8).astype(np.float32)
    quantized = codebook(weight, bits=2)
    expected = naive.proxy_loss(weight, quantized.dequantize(), hessian)
    assert proxy_loss(weight, quantized, hessian) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_dequantize_to_any_dtype(backend, dtype):
    weight = cases.random_matrix(1, (5, 24), np.float32)
    quantized = rtn(weight, bits=8, group_size=8, scale_dtype=np.float32)
    values = backend.call(QuantizedWeight.dequantize, quantized, dtype)
    assert values.dtype == dtype
    np.testing.assert_array_equal(values, quantized.dequantize().astype(dtype))


def test_dequantize_with_group_indices(backend):
    codes = np.array([[1, 2, 3, 0]], np.uint8)
    quantized = QuantizedWeight(
        codes,
        np.array([[0.5, 2.0]], np.float16),
        np.array([[1, 2]], np.uint8),
        bits=2,
        group_size=2,
        symmetric=False,
        g_idx=np.array([1, 0, 1, 0]),
    )
    values = backend.call(QuantizedWeight.dequantize, quantized)
    np.testing.assert_array_equal(values, [[-2.0, 0.5, 2.0, -0.5]])


def test_scales_too_small_or_too_large_for_their_dtype(backend):
    tiny = backend.call(rtn, np.full((1, 4), 1e-12, np.float32), bits=4, group_size=4)
    assert tiny.scales[0, 0] == np.float16(2.0**-24)
    with pytest.raises(ValueError, match="scale_dtype: scales in float16: .*got inf at"):
        backend.call(rtn, np.full((1, 4), 1e9, np.float32), bits=2, group_size=4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bits": 1}, ValueError, "bits: expected 2 to 8, got 1"),
        ({"bits": 4, "group_size": 3}, ValueError, "group_size: .*divisor of K = 8, got 3"),
        ({"bits": 4, "group_size": 4, "scale_dtype": np.int8}, TypeError, "scale_dtype: .*int8"),
    ],
)
def test_errors_name_the_argument(backend, options, error, message):
    weight = np.ones((2, 8), np.float32)
    with pytest.raises(error, match=message):
        backend.call(rtn, weight, **options)
    with pytest.raises(error, match=message):
        backend.call(gptq, weight, np.eye(8, dtype=np.float32), **options)


def test_arrays_of_several_devices_are_refused(backend):
    if backend.name == "numpy":
        with pytest.raises(TypeError, match="weight: expected a NumPy or CUDA array, got .*list"):
            rtn([[1.0]], bits=4)
        return
    weight, hessian = np.ones((2, 8), np.float32), np.eye(8, dtype=np.float32)
    with pytest.raises(TypeError, match="weight on the GPU, hessian on the CPU"):
        gptq(backend.array(weight), hessian, bits=4, group_size=8)


def test_non_finite_weights_and_hessians_are_named(backend):
    weight = np.ones((2, 8), np.float32)
    weight[1, 5] = np.inf
    with pytest.raises(ValueError, match=r"weight: expected finite values, got inf at \[1, 5\]"):
        backend.call(rtn, weight, bits=4, group_size=8)
    hessian = np.eye(8)
    hessian[2, 3] = np.nan
    with pytest.raises(ValueError, match=r"hessian: expected finite values, got nan at \[2, 3\]"):
        backend.call(gptq, np.ones((2, 8)), hessian, bits=4, group_size=8)


def test_quantized_weights_are_equal_where_all_they_hold_is(backend):
    weight = cases.random_matrix(0, (3, 8), np.float32)
    one, same = (backend.call(rtn, weight, bits=4, group_size=4) for _ in range(2))
    assert one == same
    assert one != backend.call(rtn, weight, bits=4, group_size=8)
    assert one != backend.call(rtn, -weight, bits=4, group_size=4)
    assert one != "another thing"
