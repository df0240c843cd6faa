"""Bit packing against its definition."""

from __future__ import annotations

import numpy as np
from formats.naive_packing import naive_pack
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from numbacalib.formats.bit_packing import pack_bits, unpack_bits


@st.composite
def codes_of_bits(draw):
    bits = draw(st.integers(1, 8))
    shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 140)))
    return draw(arrays(np.uint8, shape, elements=st.integers(0, 2**bits - 1))), bits


@given(codes_of_bits())
def test_words_are_the_digits_of_an_integer(case):
    codes, bits = case
    np.testing.assert_array_equal(pack_bits(codes, bits), naive_pack(codes, bits))


@given(codes_of_bits())
def test_any_strides(case):
    codes, bits = case
    np.testing.assert_array_equal(pack_bits(codes.T, bits), naive_pack(codes.T, bits))
    np.testing.assert_array_equal(pack_bits(codes[::-1], bits), naive_pack(codes[::-1], bits))


@given(codes_of_bits())
def test_unpacking_reads_what_was_packed(case):
    codes, bits = case
    words = naive_pack(codes, bits)
    np.testing.assert_array_equal(unpack_bits(words, bits, codes.shape[1]), codes)
    columns = np.asfortranarray(words)
    np.testing.assert_array_equal(unpack_bits(columns, bits, codes.shape[1]), codes)
