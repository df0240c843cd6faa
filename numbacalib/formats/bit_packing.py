"""Codes as a dense stream of bits in 32-bit words, one stream per row.

Code ``j`` takes the bits ``[j * bits, (j + 1) * bits)`` of its row's stream, least significant bit
first. A code may straddle two words; the bits after the last code are zero.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.runtime.jit import kernel
from numbacalib.runtime.strides import rows_view

WORD_BITS = 32


def word_count(codes: int, bits: int) -> int:
    """Words that a row of `codes` codes takes."""
    return -(-codes * bits // WORD_BITS)


def pack_bits(codes: NDArray, bits: int) -> NDArray[np.int32]:
    """Pack codes uint8 [R, C], each below ``2 ** bits``, into words int32 [R, word_count(C, bits)].

    Any strides; `bits` is 1 to 8.
    """
    rows, columns = codes.shape
    words = np.empty((rows, word_count(columns, bits)), np.uint32)
    _pack(_read_only(codes), bits, words)
    return words.view(np.int32)


def unpack_bits(words: NDArray, bits: int, columns: int) -> NDArray[np.uint8]:
    """Read back codes uint8 [R, columns] from words int32 [R, word_count(columns, bits)]."""
    codes = np.empty((len(words), columns), np.uint8)
    _unpack(_read_only(words), bits, codes)
    return codes


def _read_only(array: NDArray) -> NDArray:
    """Return a contiguous read-only view, as of a memory-mapped file, so that a kernel is compiled once."""
    return rows_view(np.ascontiguousarray(array))


@kernel
def _pack(codes, bits, words):
    """Split: one task per row."""
    for i in prange(len(codes)):
        pending = np.uint64(0)
        filled = 0
        word = 0
        for j in range(codes.shape[1]):
            pending |= np.uint64(codes[i, j]) << np.uint64(filled)
            filled += bits
            if filled >= WORD_BITS:
                words[i, word] = np.uint32(pending)
                word += 1
                pending >>= np.uint64(WORD_BITS)
                filled -= WORD_BITS
        if filled > 0:
            words[i, word] = np.uint32(pending)


@kernel
def _unpack(words, bits, codes):
    """Split: one task per row."""
    mask = np.uint64((1 << bits) - 1)
    for i in prange(len(codes)):
        pending = np.uint64(0)
        filled = 0
        word = 0
        for j in range(codes.shape[1]):
            if filled < bits:
                pending |= np.uint64(np.uint32(words[i, word])) << np.uint64(filled)
                word += 1
                filled += WORD_BITS
            codes[i, j] = np.uint8(pending & mask)
            pending >>= np.uint64(bits)
            filled -= bits
