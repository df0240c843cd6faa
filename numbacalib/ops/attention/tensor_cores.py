"""GPU kernel of attention on tensor cores, for 16-bit floats and compute capability 8.0 or more.

As Dao (2023), arXiv 2307.08691: a block of warps takes a tile of queries, each warp 16 of them, and meets
the keys tile after tile, while the next tile is on its way to shared memory. Scores, weights and sums
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
LOWEST = np.float32(-3e38)
"""Below any score; a difference of two of it is a number, which one of infinities is not."""


def attention(
    queries: DeviceArray,
    keys: DeviceArray,
    values: DeviceArray,
    window: int,
    scale: float,
    sinks: DeviceArray | None,
) -> DeviceArray:
    """See `numbacalib.ops.attention.attention`; a window of 0 is none, and D is a multiple of 8."""
    context = device.empty(queries.shape, queries.dtype)
    sequences, length, heads, size = queries.shape
    element = "f16" if queries.dtype == np.float16 else "bf16"
    grid = -(-length // QUERIES), heads, sequences
    powers_of_two = np.float32(math.log2(math.e) * scale)
    padded = -(-size // 64) * 64
    addresses = tuple(array.address for array in (queries, keys, values, context))
    sizes = length, heads, keys.shape[2], size
    launch(
        _kernel(element, padded),
        grid,
        THREADS,
        *addresses,
        *sizes,
        window,
        powers_of_two,
        np.float32(scale),
        0 if sinks is None else sinks.address,
        shared_bytes=8
        * _keys(padded)
        * padded,  # two tiles of keys and two of values, 16 bits each
    )
    return context


def _keys(padded: int) -> int:
    """Keys of a tile: with short heads fewer, so that two blocks share a multiprocessor (measured)."""
    return 64 if padded == 64 else 128


@functools.cache
def _kernel(element: str, padded: int) -> Any:
    keys_of_tile = _keys(padded)
    blocks = 2 if padded == 64 else 1
    parts = mma.fragments(element, padded, keys_of_tile)
    nothing, scores_of, largest, weigh = parts.nothing, parts.scores, parts.largest, parts.weigh
    scaled, add_values, packed = parts.scaled, parts.add_values, parts.packed
    row_bytes = 2 * padded
    chunks = padded // 8
    tile_bytes = keys_of_tile * row_bytes
    steps = padded // 16
    query_words = mma.words(4 * steps)
    offset_words = mma.words(steps)
    store_words = mma.each(padded // 4)

    @cuda.jit(device=True, forceinline=True)
    def offset_of_keys(step, lane):
        """Return where this lane's row of the keys' matrices begins: keys, then numbers of a head."""
        row = (lane & 7) + ((lane >> 4) & 1) * 8
        chunk = 2 * step + ((lane >> 3) & 1)
        return types.uint32(row * row_bytes + ((chunk ^ (lane & 7)) << 4))

    @cuda.jit(device=True, forceinline=True)
    def offset_of_values(step, lane):
        """Return where this lane's row of the values' matrices begins: keys, then numbers of a head."""
        row = (lane & 7) + ((lane >> 3) & 1) * 8
        chunk = 2 * step + ((lane >> 4) & 1)
        return types.uint32(row * row_bytes + ((chunk ^ (lane & 7)) << 4))

    @cuda.jit(device=True, forceinline=True)
    def query_word(i, address, row, pitch, length, column, size):
        """Two numbers of a query: register i of its fragments, ``[step, columns, rows]``."""
        r = row + (i & 1) * 8
        d = column + (i >> 2) * 16 + ((i >> 1) & 1) * 8
        wanted = types.uint32(1) if r < length and d < size else types.uint32(0)
        return ptx.load_word_if(address + types.uint64(r * pitch + d * 2), wanted)

    @cuda.jit(device=True, forceinline=True)
    def store_word(word, i, address, row, pitch, length, column, size):
        """Write two numbers of what a query attends to: register i of ``[columns, rows]``."""
        r = row + (i & 1) * 8
        d = column + (i >> 1) * 8
        wanted = types.uint32(1) if r < length and d < size else types.uint32(0)
        ptx.store_word_if(address + types.uint64(r * pitch + d * 2), word, wanted)

    @cuda.jit(device=True, forceinline=True)
    def start_copy(target, source, pitch, first, length, size, thread):
        """Start copying a tile of keys or values, zeros where there is none."""
        for index in range(thread, keys_of_tile * chunks, THREADS):
            row, chunk = index // chunks, index % chunks
            inside = first + row < length and chunk * 8 < size
            where = min(first + row, length - 1) * pitch + min(chunk * 16, 2 * size - 16)
            place = target + row * row_bytes + ((chunk ^ (row & 7)) << 4)
            count = types.uint32(16) if inside else types.uint32(0)
            mma.copy_chunk(types.uint32(place), source + types.uint64(where), count)

    @cuda.jit(launch_bounds=(THREADS, blocks))
    def attend(
        queries, keys, values, context, length, heads, sources, size, window, scale, natural, sinks
    ):
        """One block a tile of queries of a head, a warp 16 of them; the longest rows first.

        Scores are powers of 2 once multiplied by `scale`, of e by `natural`.
        """
        shared = cuda.shared.array(0, types.float32)
        base = types.int64(ptx.shared_address(shared))
        thread = types.int64(cuda.threadIdx.x)
        lane = types.int32(thread & 31)
        start = types.int64(cuda.gridDim.x - 1 - cuda.blockIdx.x) * QUERIES
        head, s = types.int64(cuda.blockIdx.y), types.int64(cuda.blockIdx.z)
        source = head // (heads // sources)
        pitch, source_pitch = heads * size * 2, sources * size * 2
        mine = types.uint64((s * length * heads + head) * size * 2)
        theirs = types.uint64((s * length * sources + source) * size * 2)
        keys, values = types.uint64(keys) + theirs, types.uint64(values) + theirs
        row = start + (thread >> 5) * 16 + (lane >> 2)
        column = types.int64((lane & 3) * 2)
        place = (row, pitch, length, column, size)
        q = query_words(query_word, (types.uint64(queries) + mine, *place))
        of_keys = offset_words(offset_of_keys, (lane,))
        of_values = offset_words(offset_of_values, (lane,))
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
        start_copy(base, keys, source_pitch, first, length, size, thread)
        start_copy(base + tile_bytes, values, source_pitch, first, length, size, thread)
        while first < stop:
            # this tile is there, and all warps are done with the one before it
            mma.copies_wait()
            cuda.syncthreads()
            here = base + stage * 2 * tile_bytes
            stage = 1 - stage
            ahead = first + keys_of_tile
            if ahead < stop:
                there = base + stage * 2 * tile_bytes
                start_copy(there, keys, source_pitch, ahead, length, size, thread)
                start_copy(there + tile_bytes, values, source_pitch, ahead, length, size, thread)
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
        store_words(packed(o), store_word, (types.uint64(context) + mine, *place))

    return attend
