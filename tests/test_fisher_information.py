import cases
import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numbacalib


def check(backend, gradients):
    information = backend.numpy(numbacalib.fisher_information(backend.array(gradients)))
    assert information.shape == (gradients.shape[1],)
    assert information.dtype == cases.result_dtype(gradients)
    np.testing.assert_allclose(
        information,
        naive.fisher_information(gradients),
        rtol=cases.tolerance(information.dtype, len(gradients)),
        atol=float(np.finfo(information.dtype).tiny),  # a square may underflow
    )


@given(data=st.data())
def test_agrees_with_the_definition(backend, data):
    check(backend, data.draw(cases.matrices()))


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (700, 3), (2, 4099), (65, 257), (1000, 70)])
def test_sizes_around_the_tiles(backend, rows, columns, layout):
    if backend.name == "cudasim" and rows * columns > 2100:
        rows, columns = rows // 16 + 1, columns // 16 + 1
    check(backend, cases.random_matrix(1, (rows, columns), np.float32, layout))


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_subnormal_and_large_values(backend, dtype):
    info = np.finfo(dtype) if dtype in (np.float16, np.float32, np.float64) else None
    tiny = info.smallest_subnormal if info else 2.0**-133
    gradients = np.array([[tiny, 200.0, 0.0, -0.0, 1.0]] * 3, dtype)
    check(backend, gradients)


def test_non_finite_values_show_in_their_own_column(backend):
    gradients = cases.random_matrix(1, (6, 4), np.float16)
    gradients[2, 1] = np.nan
    gradients[3, 2] = -np.inf
    information = backend.numpy(numbacalib.fisher_information(backend.array(gradients)))
    np.testing.assert_array_equal(np.isnan(information), [False, True, False, False])
    np.testing.assert_array_equal(np.isinf(information), [False, False, True, False])


@pytest.mark.parametrize("rows", [1, 3, 700])
def test_squares_up_to_the_limit_have_a_finite_mean(backend, rows):
    limit = (np.finfo(np.float32).max / rows) ** 0.5
    gradients = np.full((rows, 3), 0.9999 * limit, np.float32)
    check(backend, gradients)
    gradients[:, 1] *= 1.001
    information = backend.numpy(numbacalib.fisher_information(backend.array(gradients)))
    np.testing.assert_array_equal(np.isinf(information), [False, True, False])


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_parameters_on_several_axes_are_those_of_a_row(backend, layout):
    rows, shape = 5, (3, 4)
    flat = cases.random_matrix(1, (rows, 12), np.float32, layout)
    gradients = flat.reshape(rows, *shape)  # in memory as cases have it, or a copy
    information = backend.numpy(numbacalib.fisher_information(backend.array(gradients)))
    assert information.shape == shape
    expected = backend.numpy(numbacalib.fisher_information(backend.array(flat.copy())))
    np.testing.assert_array_equal(information.ravel(), expected)


def test_out_of_several_axes_receives_the_result(backend):
    gradients = cases.random_matrix(1, (6, 12), np.float32).reshape(6, 3, 4)
    out = backend.array(np.full((3, 4), np.nan, np.float32))
    assert numbacalib.fisher_information(backend.array(gradients), out=out) is out
    expected = naive.fisher_information(gradients.reshape(6, 12)).reshape(3, 4)
    np.testing.assert_allclose(backend.numpy(out), expected, rtol=1e-5)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"gradients: expected shape \[N, P\], got \[4\]"):
        numbacalib.fisher_information(np.zeros(4))
    with pytest.raises(ValueError, match="gradients: expected non-empty axes"):
        numbacalib.fisher_information(np.zeros((2, 0)))
    with pytest.raises(TypeError, match="gradients: .*complex128"):
        numbacalib.fisher_information(np.zeros((2, 3), complex))
    with pytest.raises(ValueError, match="out: expected shape"):
        numbacalib.fisher_information(np.zeros((2, 3)), out=np.zeros(4))
    with pytest.raises(ValueError, match=r"out: expected shape \[3, 4\]"):
        numbacalib.fisher_information(np.zeros((2, 3, 4)), out=np.zeros(12))
