"""MXFP4 tensors as gpt-oss stores its experts."""

import naive_fp4
import numpy as np
import pytest

from numbacalib.models.mxfp4 import mxfp4_values


def test_every_code_and_every_scale_stand_for_their_numbers():
    codes = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    scales = np.array([[0, 1, 100, 126, 127, 128, 150, 254, 120, 121, 122, 123, 124, 125, 90, 60]])
    values = mxfp4_values(codes, scales.astype(np.uint8))
    assert values.dtype == np.float32
    expected = [
        naive_fp4.point(code) * 2.0 ** (int(scale) - 127)
        for block, scale in zip(codes[0], scales[0], strict=True)
        for byte in block
        for code in (int(byte) % 16, int(byte) // 16)
    ]
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(values[0], np.array(expected).astype(np.float32))


def test_a_scale_that_is_not_a_number_shows_in_its_block_alone():
    values = mxfp4_values(np.full((3, 2, 16), 0x22, np.uint8), np.array([[127, 255]] * 3, np.uint8))
    assert values.shape == (3, 64)
    assert (values[:, :32] == 1).all()
    assert np.isnan(values[:, 32:]).all()


@pytest.mark.parametrize(
    ("blocks", "scales", "message"),
    [
        (np.zeros((2, 8), np.uint8), np.zeros(2, np.uint8), r"blocks: expected uint8 \[2, 16\]"),
        (np.zeros((2, 16), np.int8), np.zeros(2, np.uint8), "got int8"),
        (np.zeros((2, 16), np.uint8), np.zeros(2, np.float32), "scales: expected uint8"),
    ],
)
def test_what_does_not_fit_is_refused(blocks, scales, message):
    with pytest.raises(ValueError, match=message):
        mxfp4_values(blocks, scales)
