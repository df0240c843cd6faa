"""Results in the form that a caller asks for: signed codes, arrays of its own, and nobody waiting."""

import numpy as np
import pytest
from test_methods_fixed_grids import grids
from test_methods_gptq import layer

from numbacalib.methods import gptq, gptq_batch, rtn

KINDS = [None, "real", "integer", "symmetric"]


def methods(weight, hessian):
    """The methods that take the same options, with their arrays."""
    return {"rtn": (rtn, [weight]), "gptq": (gptq, [weight, hessian])}


def options_of(kind, rows=4, bits=4):
    """Options of a grid that the method finds, or that is given."""
    return {"bits": bits} if kind is None else grids(kind, rows, 3, bits)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["rtn", "gptq"])
@pytest.mark.parametrize("bits", [2, 8])
def test_signed_codes_are_the_unsigned_ones_less_half_of_their_range(backend, name, kind, bits):
    method, arrays = methods(*layer(5))[name]
    options = options_of(kind, bits=bits) | {"group_size": 8}
    usual = backend.call(method, *arrays, **options)
    found = backend.call(method, *arrays, signed=True, **options)
    assert found.codes.dtype == np.int8
    assert found.zeros.dtype == (np.float32 if kind == "real" else np.int8)
    half = 2 ** (bits - 1)
    np.testing.assert_array_equal(found.codes, usual.codes.astype(int) - half)
    wide = np.float32 if kind == "real" else np.int64
    np.testing.assert_array_equal(found.zeros, usual.zeros.astype(wide) - half)
    np.testing.assert_array_equal(found.scales, usual.scales)
    np.testing.assert_allclose(found.dequantize(), usual.dequantize(), rtol=1e-5, atol=1e-6)


def empty_results(backend, lead, kind, scale_dtype, *, signed):
    integers = np.int8 if signed else np.uint8
    zeros = np.float32 if kind == "real" else integers
    shapes = ((24, integers), (3, scale_dtype), (3, zeros))
    return [backend.array(np.zeros((*lead, width), dtype)) for width, dtype in shapes]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", ["rtn", "gptq"])
def test_results_come_into_the_arrays_of_the_caller(backend, name, signed, kind):
    method, arrays = methods(*layer(5))[name]
    options = options_of(kind) | {"group_size": 8, "signed": signed, "scale_dtype": np.float32}
    usual = backend.call(method, *arrays, **options)
    out = empty_results(backend, (4,), kind, np.float32, signed=signed)
    moved = {
        key: backend.array(value) if isinstance(value, np.ndarray) else value
        for key, value in options.items()
    }
    found = method(*map(backend.array, arrays), out=out, **moved)
    for array, attribute in zip(out, ("codes", "scales", "zeros"), strict=True):
        np.testing.assert_array_equal(backend.numpy(array), getattr(usual, attribute))
        own = backend.numpy(getattr(found, attribute))
        np.testing.assert_array_equal(own, getattr(usual, attribute))


def test_some_results_may_be_the_callers(backend):
    weight, _ = layer(5)
    codes, *_ = empty_results(backend, (4,), None, np.float16, signed=False)
    found = rtn(backend.array(weight), bits=4, group_size=8, out=(codes, None, None))
    usual = backend.call(rtn, weight, bits=4, group_size=8)
    np.testing.assert_array_equal(backend.numpy(codes), usual.codes)
    np.testing.assert_array_equal(backend.numpy(found.scales), usual.scales)


@pytest.mark.parametrize("signed", [False, True])
def test_a_batch_writes_where_it_is_asked_to(backend, signed):
    weights, hessians = (np.stack(each) for each in zip(layer(5), layer(6), strict=True))
    options = {"bits": 4, "group_size": 8, "signed": signed, "wait": False}
    out = empty_results(backend, (2, 4), None, np.float16, signed=signed)
    found = gptq_batch(backend.array(weights), backend.array(hessians), out=out, **options)
    for e, own in enumerate(found):
        own.check()
        alone = backend.call(gptq, weights[e], hessians[e], bits=4, group_size=8, signed=signed)
        np.testing.assert_array_equal(backend.numpy(out[0])[e], alone.codes)
        np.testing.assert_array_equal(backend.numpy(out[1])[e], alone.scales)
        np.testing.assert_array_equal(backend.numpy(out[2])[e], alone.zeros)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["rtn", "gptq"])
def test_a_call_that_does_not_wait_gives_the_same_codes(backend, name, kind):
    method, arrays = methods(*layer(5))[name]
    options = options_of(kind) | {"group_size": 8}
    usual = backend.call(method, *arrays, **options)
    found = backend.call(method, *arrays, wait=False, **options)
    found.check()
    found.check()  # as often as one likes
    np.testing.assert_array_equal(found.codes, usual.codes)
    np.testing.assert_array_equal(found.zeros, usual.zeros)
    assert (found.report is None) == (name == "rtn" or backend.name != "numpy")


FAULTS = {
    "weight": (ValueError, r"weight: expected finite values, got nan at \[1, 2\]"),
    "hessian": (ValueError, r"hessian: expected finite values, got nan at \[2, 2\]"),
    "scales": (ValueError, "scales: expected numbers other than 0, got 0"),
    "infinite scales": (ValueError, r"scales: expected finite values, got inf at \[0, 0\]"),
    "zeros": (ValueError, r"zeros: expected magnitudes below 1.05e\+06, got 2000000.0"),
    "factor": (np.linalg.LinAlgError, "hessian: not positive definite at channel"),
    "stored": (ValueError, "scale_dtype: scales in float16: expected finite values"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_call_would_have_raised_comes_from_the_check(backend, fault):
    weight, hessian = layer(5)
    options = options_of("real") | {"group_size": 8, "wait": False}
    if fault == "weight":
        weight[1, 2] = np.nan
    if fault == "hessian":
        hessian[2, 2] = np.nan
    if fault == "scales":
        options["scales"][1, 1] = 0
    if fault == "infinite scales":
        options["scales"][0, 0] = np.inf
    if fault == "zeros":
        options["zeros"][0, 0] = 2e6
    if fault == "factor":
        hessian -= 2 * np.diag(np.diagonal(hessian))
        options |= {"damping_tries": 1}
    if fault == "stored":
        weight *= 1e12
        options = {"bits": 4, "group_size": 8, "wait": False}
    error, message = FAULTS[fault]

    def call():
        return backend.call(gptq, weight, hessian, **options)

    if backend.name == "numpy":  # which has nothing to wait for
        with pytest.raises(error, match=message):
            call()
        return
    found = call()
    for _ in range(2):
        with pytest.raises(error, match=message):
            found.check()


def test_bad_results_and_flags_name_the_argument(backend):
    weight, _ = layer(5)
    moved = backend.array(weight)
    good = empty_results(backend, (4,), None, np.float16, signed=False)
    cases = [
        ({"out": good[:2]}, TypeError, "out: expected three arrays or None, got list"),
        ({"out": good, "signed": True}, ValueError, r"out\[0\]: expected shape \[4, 24\] and dtype int8"),
        ({"out": (good[0], good[1], good[1])}, ValueError, r"out\[1\]: expected memory of its own"),
        ({"out": (None, good[2], None)}, ValueError, r"out\[1\]: expected shape \[4, 3\] and dtype"),
        ({"signed": 1}, TypeError, "signed: expected a bool, got int"),
        ({"wait": None}, TypeError, "wait: expected a bool, got NoneType"),
    ]  # fmt: skip
    for options, error, message in cases:
        with pytest.raises(error, match=message):
            rtn(moved, bits=4, group_size=8, **options)


def test_results_of_a_batch_are_a_stack(backend):
    weights, hessians = (np.stack(each) for each in zip(layer(5), layer(6), strict=True))
    out = empty_results(backend, (4,), None, np.float16, signed=False)
    with pytest.raises(ValueError, match=r"out\[0\]: expected shape \[2, M, K\], got \[4, 24\]"):
        gptq_batch(backend.array(weights), backend.array(hessians), bits=4, group_size=8, out=out)
