"""Device memory as kernels take it: parts, shapes and strides, which need no device."""

import numpy as np
import pytest

from numbacalib.runtime.array import DeviceArray

FIRST = 4096
SHAPE = (5, 6)


@pytest.fixture
def array():
    return DeviceArray(FIRST, SHAPE, np.dtype(np.float32), None)


def layout(array):
    return array.address - FIRST, array.shape, array.strides


def expected_layout(part, whole):
    return (
        part.__array_interface__["data"][0] - whole.__array_interface__["data"][0],
        part.shape,
        part.strides,
    )


@pytest.mark.parametrize(
    "key",
    [0, 4, -1, slice(1, 3), (slice(None), slice(2, 4)), (2, slice(1, None)), (slice(1, 4), 5)],
    ids=str,
)
def test_parts_are_those_of_numpy(array, key):
    whole = np.zeros(SHAPE, np.float32)
    assert layout(array[key]) == expected_layout(whole[key], whole)


def test_rows_end_where_the_array_ends(array):
    assert [row.address for row in array] == [FIRST + 24 * i for i in range(5)]
    for key in (5, -6, (0, 6)):
        with pytest.raises(IndexError, match="expected an index of"):
            array[key]


@pytest.mark.parametrize("shape", [(30,), (1, 5, 6), (3, 10), (-1, 3), (2, -1)], ids=str)
def test_shapes_are_those_of_numpy(array, shape):
    whole = np.zeros(SHAPE, np.float32)
    assert layout(array.reshape(*shape)) == layout(array.reshape(shape))
    assert layout(array.reshape(*shape)) == expected_layout(whole.reshape(shape), whole)


def test_a_shape_that_takes_a_copy_is_an_error(array):
    with pytest.raises(ValueError, match="copy"):
        array[:, 1:3].reshape(-1)
    with pytest.raises(ValueError, match="reshape"):
        array.reshape(7, 4)
