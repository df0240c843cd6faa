"""GPU kernel of attention on tensor cores, for 16-bit floats and compute capability 8.0 or more.

As Dao (2023), arXiv 2307.08691: a block of warps takes a tile of queries, each warp 16 of them, and goes
through the keys tile by tile, while the next tile is copied to shared memory. Scores, weights and sums
stay in registers.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numba.cuda import types

from numbacalib.runtime import device, mma, ptx
from numbacalib.runtime.device import DeviceArray, cuda
from numbacalib.runtime.launch import launch
from numbacalib.spec.decoder import first_key

WARPS = 8
THREADS = 32 * WARPS
QUERIES = 16 * WARPS
LOWEST = np.float32(-1e30)
"""Below any score, and so far above hidden scores, -3e38, that their weights are 0. With -3e38 here, a
product that is fused into a difference would leave as much as 1e30 of either sign.
"""


def attention(
    queries: DeviceArray,
    keys: DeviceArray,
    values: DeviceArray,
    window: int,
    scale: float,
    sinks: DeviceArray | None,
) -> DeviceArray:
    """See `numbacalib.ops.attention.attention`; a window of 0 means none, D and V are multiples of 8."""
    sequences, length, heads, size = queries.shape
    width = values.shape[3]
    context = device.empty((sequences, length, heads, width), queries.dtype)
    element = "f16" if queries.dtype == np.float16 else "bf16"
    grid = -(-length // QUERIES), heads, sequences
    powers_of_two = np.float32(math.log2(math.e) * scale)
    addresses = tuple(array.address for array in (queries, keys, values, context))
    sizes = length, heads, keys.shape[2]
    kernel, shared_bytes = _kernel(element, size, width)
    launch(
        kernel,
        grid,
        THREADS,
        *addresses,
        *sizes,
        window,
        powers_of_two,
        np.float32(scale),
        0 if sinks is None else sinks.address,
        shared_bytes=shared_bytes,
    )
    return context


def _keys(padded: int) -> int:
    """Keys of a tile: fewer with short heads, so that two blocks share a multiprocessor (measured), and
    with long ones, whose queries fill the registers.
    """
    return 128 if padded == 128 else 64


@functools.cache
def _kernel(element: str, size: int, width: int) -> tuple[Any, int]:
    """Return the kernel for heads of `size` and `width`, see `mma.fragments`, and its shared bytes."""
    padded, padded_width = (-(-numbers // 64) * 64 for numbers in (size, width))
    keys_of_tile = _keys(padded)
    blocks = 2 if padded == padded_width == 64 else 1
    parts = mma.fragments(element, padded, padded_width, keys_of_tile)
    nothing, scores_of, largest, weigh = parts.nothing, parts.scores, parts.largest, parts.weigh
    scaled, add_values, packed = parts.scaled, parts.add_values, parts.packed
    key_bytes, value_bytes = 2 * padded, 2 * padded_width
    tile_bytes = keys_of_tile * key_bytes
    stage_bytes = tile_bytes + keys_of_tile * value_bytes
    steps = padded // 16
    query_words = mma.words(4 * steps)
    key_words, value_words = mma.words(steps), mma.words(padded_width // 16)
    store_words = mma.each(padded_width // 4)

    @cuda.jit(device=True, forceinline=True)
    def offset_of_keys(step, lane):
        """Return the offset of this lane's row of the keys' matrices, [keys, numbers of a head]."""
        row = (lane & 7) + ((lane >> 4) & 1) * 8
        chunk = 2 * step + ((lane >> 3) & 1)
        return types.uint32(row * key_bytes + ((chunk ^ (lane & 7)) << 4))

    @cuda.jit(device=True, forceinline=True)
    def offset_of_values(step, lane):
        """Return the offset of this lane's row of the values' matrices, [keys, numbers of a head]."""
        row = (lane & 7) + ((lane >> 3) & 1) * 8
        chunk = 2 * step + ((lane >> 4) & 1)
        return types.uint32(row * value_bytes + ((chunk ^ (lane & 7)) << 4))

    @cuda.jit(device=True, forceinline=True)
    def query_word(i, address, row, pitch, length, column):
        """Two numbers of a query: register i of its fragments, ``[step, columns, rows]``."""
        r = row + (i & 1) * 8
        d = column + (i >> 2) * 16 + ((i >> 1) & 1) * 8
        wanted = types.uint32(1) if r < length and d < size else types.uint32(0)
        return ptx.load_word_if(address + types.uint64(r * pitch + d * 2), wanted)

    @cuda.jit(device=True, forceinline=True)
    def store_word(word, i, address, row, pitch, length, column):
        """Write two numbers of a query's output: register i of ``[columns, rows]``."""
        r = row + (i & 1) * 8
        d = column + (i >> 1) * 8
        wanted = types.uint32(1) if r < length and d < width else types.uint32(0)
        ptx.store_word_if(address + types.uint64(r * pitch + d * 2), word, wanted)

    @cuda.jit(device=True, forceinline=True)
    def copy_rows(target, source, numbers, chunks, sources, first, length, thread):
        """Start copying rows of `numbers` to a tile of rows of `chunks`, padded with zeros."""
        for index in range(thread, keys_of_tile * chunks, THREADS):
            row, chunk = index // chunks, index % chunks
            inside = first + row < length and chunk * 8 < numbers
            start = min(first + row, length - 1) * sources * numbers + min(chunk * 8, numbers - 8)
            place = target + row * chunks * 16 + ((chunk ^ (row & 7)) << 4)
            count = types.uint32(16) if inside else types.uint32(0)
            mma.copy_chunk(types.uint32(place), source + types.uint64(2 * start), count)

    @cuda.jit(device=True, forceinline=True)
    def start_copy(target, keys, values, sources, first, length, thread):
        """Start copying a tile of keys, and one of values behind it."""
        copy_rows(target, keys, size, padded // 8, sources, first, length, thread)
        target += tile_bytes
        copy_rows(target, values, width, padded_width // 8, sources, first, length, thread)

    @cuda.jit(launch_bounds=(THREADS, blocks))
    def attend(
        queries, keys, values, context, length, heads, sources, window, scale, natural, sinks
    ):
        """One block a tile of queries of a head, a warp 16 of them; the longest rows first.

        Scores times `scale` are exponents of 2, times `natural` exponents of e.
        """
        shared = cuda.shared.array(0, types.float32)
        base = types.int64(ptx.shared_address(shared))
        thread = types.int64(cuda.threadIdx.x)
        lane = types.int32(thread & 31)
        start = types.int64(cuda.gridDim.x - 1 - cuda.blockIdx.x) * QUERIES
        head, s = types.int64(cuda.blockIdx.y), types.int64(cuda.blockIdx.z)
        source = head // (heads // sources)
        mine, theirs = s * length * heads + head, s * length * sources + source
        queries = types.uint64(queries) + types.uint64(mine * size * 2)
        keys = types.uint64(keys) + types.uint64(theirs * size * 2)
        values = types.uint64(values) + types.uint64(theirs * width * 2)
        context = types.uint64(context) + types.uint64(mine * width * 2)
        row = start + (thread >> 5) * 16 + (lane >> 2)
        column = types.int64((lane & 3) * 2)
        q = query_words(query_word, (queries, row, heads * size * 2, length, column))
        of_keys = key_words(offset_of_keys, (lane,))
        of_values = value_words(offset_of_values, (lane,))
        o = nothing()
        peak0 = peak1 = LOWEST
        total0 = total1 = np.float32(0)
        if sinks != 0:
            # its weight is 1 in the sum of the four threads that share a row
            peak0 = peak1 = ptx.load_constant(types.uint64(sinks + head * 4)) / natural
            total0 = total1 = np.float32(1) if lane & 3 == 0 else np.float32(0)
        below = row + 8
        low = (types.int32(first_key(row, window)), types.int32(first_key(below, window)))
        high = (types.int32(row + 1), types.int32(below + 1))
        stop = min(start + QUERIES, length)
        first = first_key(start, window) // keys_of_tile * keys_of_tile
        stage = types.int64(0)
        start_copy(base, keys, values, sources, first, length, thread)
        while first < stop:
            # this tile has arrived, and all warps are done with the one before it
            mma.copies_wait()
            cuda.syncthreads()
            here = base + stage * stage_bytes
            stage = 1 - stage
            ahead = first + keys_of_tile
            if ahead < stop:
                there = base + stage * stage_bytes
                start_copy(there, keys, values, sources, ahead, length, thread)
            scores = scores_of(q, types.uint32(here), of_keys)
            if ahead > start or window > 0:
                key = types.int32(first + column)
                scores = mma.masked(scores, key, low, high)
            before0, before1 = peak0, peak1
            peak0, peak1 = largest(scores, peak0, peak1)
            weights, sum0, sum1 = weigh(scores, peak0 * scale, peak1 * scale, scale)
            factor0 = ptx.exp2((before0 - peak0) * scale)
            factor1 = ptx.exp2((before1 - peak1) * scale)
            total0 = total0 * factor0 + sum0
            total1 = total1 * factor1 + sum1
            o = scaled(o, factor0, factor1)
            o = add_values(o, weights, types.uint32(here + tile_bytes), of_values)
            first = ahead
        total0 = ptx.sum_of_four(total0)
        total1 = ptx.sum_of_four(total1)
        o = scaled(o, np.float32(1) / total0, np.float32(1) / total1)
        place = (context, row, heads * width * 2, length, column)
        store_words(packed(o), store_word, place)

    # two tiles of keys and two of values
    return attend, 2 * stage_bytes
