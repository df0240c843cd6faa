"""Moments ``x^T y`` on tensor cores, for compute capability 9.0: added to a matrix of float32.

Each tile of `product` is computed by one cluster, which strides over the work items of
`moment_tiles_gpu`; a second kernel adds the pieces of the last tiles. Of ``x^T x``, a square, one triangle
is computed, and may be written to both.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from numba.cuda import types

from numbacalib.runtime import device, product, ptx, wgmma
from numbacalib.runtime.device import DeviceArray, cuda
from numbacalib.runtime.finite_gpu import NONE, FirstIndex
from numbacalib.runtime.launch import launch
from numbacalib.runtime.moment_tiles_gpu import item_finder, schedule, tile_count, tile_finder
from numbacalib.runtime.product import (
    ALIGNMENT,
    BLOCK_ROWS,
    CLUSTER,
    ROWS,
    SLAB_BYTES,
    SLAB_COLUMNS,
    SLAB_ROWS,
    SLAB_STRIDE,
    THREADS,
    TILE_ROWS,
    WARPS,
)
from numbacalib.spec.hessian import updated

CHUNK_ROWS = 16384
"""Bound on the rows of 16-bit operands: sums of chunks are added in order, which bounds rounding errors."""
COMBINE_WARPS, COMBINE_BATCH = 4, 4
COPY_THREADS = 128


class Operand(NamedTuple):
    """Operand of a product ``x^T y`` in the form that tensor cores take."""

    parts: list[DeviceArray]
    """The matrix, or the high and low halves of a float32 one: [B, K], see `aligned`."""
    scales: DeviceArray | None = None
    """[K] of the halves: ``(high + low) * scales**2`` is x."""
    begin: int = 0
    """First of the columns that are multiplied."""


class Target(NamedTuple):
    """A matrix that becomes ``beta * before + alpha * x^T y``."""

    before: DeviceArray
    after: DeviceArray
    """Rows of both are contiguous, at one stride."""
    alpha: float
    beta: float
    first_bad: DeviceArray
    """Of a `FirstIndex`; nothing is written where it holds an index."""
    mirror: bool = True
    """False to write no element of a square below its diagonal."""


class _Matrix(NamedTuple):
    """`Target` in the form that kernels take."""

    before: int
    after: int
    rows: int
    columns: int
    pitch: int
    """Elements from a row to the next."""
    mirror: bool
    scales: int
    """Address of the operand's scales."""
    alpha: np.float32
    beta: np.float32


def add_square(x: Operand, target: Target) -> None:
    """Set a target to ``beta * before + alpha * x^T x``, exactly symmetric."""
    _add(x, x, target, square=True)


def add_moment(
    left: DeviceArray, right: DeviceArray, out: DeviceArray, factor: float, keep: float
) -> None:
    """Set `out` [K, L] to ``factor * left^T right + keep * out``, of 16-bit carriers [N, K] and [N, L]."""
    nothing_bad = FirstIndex().array
    for first in range(0, len(left), CHUNK_ROWS):
        x, y = (Operand([aligned(each[first : first + CHUNK_ROWS])]) for each in (left, right))
        _add(x, y, Target(out, out, factor, keep, nothing_bad), square=False)
        keep = 1.0


def aligned(x: DeviceArray) -> DeviceArray:
    """Return a 16-bit matrix in a layout that the copy engine takes: itself, or a copy.

    Rows are contiguous and start at multiples of 16 bytes.
    """
    step, inner = x.strides
    if inner == 2 and step > 0 and (x.address | step) % 16 == 0:
        return x
    rows, columns = x.shape
    copy = device.empty((rows, -(-columns // 8) * 8), x.dtype)
    launch(_copy, (-(-columns // COPY_THREADS), min(rows, 32768)), COPY_THREADS, x, copy)
    return copy[:, :columns]


def _add(left: Operand, right: Operand, target: Target, *, square: bool) -> None:
    """Launch the product of one block of rows."""
    number = device.current_device()
    split = left.scales is not None
    element = "f16" if split or left.parts[0].dtype == np.uint16 else "bf16"
    kernels = _kernels(element, split, square)
    before, after = target.before, target.after
    rows, columns = after.shape
    blocks, clusters = -(-len(left.parts[0]) // ROWS), _multiprocessors(number) // CLUSTER
    tiles = tile_count((rows, columns), kernels.columns, square=square)
    work = schedule(tiles, blocks, clusters)
    cut = work.items - work.whole
    partials = device.empty((cut, TILE_ROWS, kernels.columns), np.float32)
    maps = [
        tuple(
            product.tensor_map(number, part.address, *part.shape, part.strides[0])[0]
            for part in operand.parts
        )
        for operand in (left, right)
    ]
    matrix = _Matrix(
        before.address,
        after.address,
        rows,
        columns,
        after.strides[0] // 4,
        target.mirror,
        0 if left.scales is None else left.scales.address + 4 * left.begin,
        np.float32(target.alpha),
        np.float32(target.beta),
    )
    results = partials.address, matrix, target.first_bad
    grid = CLUSTER * min(clusters, work.items)
    shared_bytes = kernels.shared_bytes
    launch(
        kernels.tiles, grid, THREADS, *maps, left.begin, work, *results, shared_bytes=shared_bytes
    )
    if cut:
        slabs = (tiles - work.whole) * TILE_ROWS // SLAB_ROWS * kernels.columns // SLAB_COLUMNS
        launch(kernels.combine, slabs // COMBINE_WARPS, 32 * COMBINE_WARPS, work, *results)


@functools.cache
def _multiprocessors(number: int) -> int:
    """Multiprocessors of the current device, which is device `number`."""
    del number
    return cuda.get_current_device().MULTIPROCESSOR_COUNT


@functools.cache
def _kernels(element: str, split: bool, square: bool) -> SimpleNamespace:
    """Compile the kernels of products of `element`, or of halves of float32 with `split`."""
    columns = 128 if split else 256
    tile = product.tile_product(element, columns, split)
    begin, produce, multiply = tile.begin, tile.produce, tile.multiply
    slab_offset = tile.slab_offset
    tile_at = tile_finder(columns, square=square)
    item_at = item_finder(tile_at)

    @cuda.jit(device=True, forceinline=True)
    def last_row(c, matrix):
        """Last row of a column that is computed, -1 outside of the matrix."""
        if square:
            return c if c < matrix.columns else types.int64(-1)
        return matrix.rows - 1 if c < matrix.columns else types.int64(-1)

    @cuda.jit(device=True, forceinline=True)
    def update(total, r, c, matrix):
        """New element of the matrix from the sum of products."""
        if split:
            of_row = ptx.load_constant(matrix.scales + 4 * min(r, matrix.columns - 1))
            scale = of_row * ptx.load_constant(matrix.scales + 4 * min(c, matrix.columns - 1))
            # twice, since the square may not be representable
            total = total * scale * scale
        old = ptx.load_if((matrix.before + 4 * r * matrix.pitch) + 4 * c, r <= last_row(c, matrix))
        return updated(old, total, matrix.alpha, matrix.beta)

    @cuda.jit(device=True, forceinline=True)
    def write_slab(shared, slab, row, column, matrix):
        """Write a warp's slab of new elements, which starts at `row`, `column`.

        A square goes to both triangles with `mirror`, else to the elements on and above the diagonal.
        """
        lane = types.int64(cuda.laneid)
        c = column + lane
        last = last_row(c, matrix) - row
        for k in range(SLAB_ROWS):
            value = shared[types.uint64(slab + k * SLAB_STRIDE + lane)]
            ptx.store_if(matrix.after + 4 * ((row + k) * matrix.pitch + c), value, k <= last)
        if square:
            half, k = lane // SLAB_ROWS, lane % SLAB_ROWS
            r = row + k
            for j in range(half, SLAB_COLUMNS, 2):
                c = column + j
                value = shared[types.uint64(slab + k * SLAB_STRIDE + j)]
                below = matrix.mirror and r < c and c < matrix.columns
                ptx.store_if(matrix.after + 4 * (c * matrix.pitch + r), value, below)
        cuda.syncwarp()

    @cuda.jit(device=True, forceinline=True)
    def keep_slab(shared, slab, partials, index):
        """Write a warp's slab to the sums of a piece, as a run of 512 numbers."""
        lane = types.int64(cuda.laneid)
        for k in range(SLAB_ROWS):
            value = shared[types.uint64(slab + k * SLAB_STRIDE + lane)]
            ptx.store_if(partials + 4 * ((index * SLAB_ROWS + k) * SLAB_COLUMNS + lane), value, 1)
        cuda.syncwarp()

    slabs = columns // SLAB_COLUMNS
    tile_slabs = slabs * CLUSTER * WARPS
    combine_floats = COMBINE_WARPS * SLAB_BYTES // 4

    @cuda.jit(launch_bounds=(THREADS, 1), lto=False)
    def tiles(left, right, offset, work, partials, matrix, first_bad):
        """Clusters stride over work items; in a block, warps have the roles described in `product`."""
        ptx.cluster_of_two()
        if first_bad[0] < NONE:
            return
        shared = cuda.shared.array(0, types.float32)
        start = types.int64(ptx.shared_address(shared))
        base = (start + ALIGNMENT - 1) & -ALIGNMENT
        begin(base)
        rank = types.int64(ptx.cluster_rank())
        warp = types.int64(cuda.threadIdx.x >> 5)
        shape = matrix.rows, matrix.columns
        stage = phase = types.int32(0)
        item = types.int64(cuda.blockIdx.x // CLUSTER)
        clusters = types.int64(cuda.gridDim.x // CLUSTER)
        if warp >= WARPS:
            ptx.registers_shrink()
            if warp == WARPS:
                for part in range(len(left)):
                    ptx.tensormap_acquire(left[part])
                    ptx.tensormap_acquire(right[part])
                while item < work.items:
                    row, column, first, last = item_at(item, shape, work)
                    row, column = offset + row, offset + column
                    stage, phase = produce(
                        base, left, right, row, column, first, last, stage, phase
                    )
                    item += clusters
        else:
            ptx.registers_grow()
            slab_address = base + slab_offset + warp * SLAB_BYTES
            slab = (slab_address - start) // 4
            lane = types.int64(cuda.laneid)
            while item < work.items:
                row, column, first, last = item_at(item, shape, work)
                row += rank * BLOCK_ROWS + warp * SLAB_ROWS
                total, stage, phase = multiply(base, first, last, stage, phase)
                if item < work.whole:
                    # All old elements are read before the first store: reads would wait behind stores.
                    # So the old and the new matrix may also be the same.
                    r, c = row + lane // 4, column + lane % 4 * 2
                    total = wgmma.fragment_map(total, update, r, c, (matrix,))
                for part in range(slabs):
                    product.store_slab(total, part, slab_address)
                    if item < work.whole:
                        write_slab(shared, slab, row, column + part * SLAB_COLUMNS, matrix)
                    else:
                        index = ((item - work.whole) * CLUSTER + rank) * WARPS + warp
                        keep_slab(shared, slab, partials, index * slabs + part)
                item += clusters
        # the other block may still copy to this one
        ptx.cluster_sync()

    @cuda.jit
    def combine(work, partials, matrix, first_bad):
        """Add the pieces of the tiles after the whole ones, in order. One warp per slab."""
        if first_bad[0] < NONE:
            return
        shared = cuda.shared.array(combine_floats, types.float32)
        lane, warp = types.int64(cuda.laneid), types.int64(cuda.threadIdx.x >> 5)
        index = types.int64(cuda.blockIdx.x) * COMBINE_WARPS + warp
        tile, index = index // tile_slabs, index % tile_slabs
        row, column = tile_at(work.whole + tile, (matrix.rows, matrix.columns))
        row += index // slabs * SLAB_ROWS
        column += index % slabs * SLAB_COLUMNS
        pieces = work.pieces
        total = cuda.local.array(SLAB_ROWS, types.float32)
        sums = cuda.local.array((COMBINE_BATCH, SLAB_ROWS), types.float32)
        for k in range(SLAB_ROWS):
            total[k] = 0
        for first in range(0, pieces, COMBINE_BATCH):
            for piece in range(COMBINE_BATCH):
                run = ((tile * pieces + first + piece) * tile_slabs + index) * SLAB_ROWS
                for k in range(SLAB_ROWS):
                    at = partials + 4 * ((run + k) * SLAB_COLUMNS + lane)
                    sums[piece, k] = ptx.load_if(at, first + piece < pieces)
            for piece in range(COMBINE_BATCH):
                for k in range(SLAB_ROWS):
                    total[k] += sums[piece, k]
        slab = warp * (SLAB_BYTES // 4)
        for k in range(SLAB_ROWS):
            value = update(total[k], row + k, column + lane, matrix)
            shared[slab + k * SLAB_STRIDE + lane] = value
        cuda.syncwarp()
        write_slab(shared, slab, row, column, matrix)

    return SimpleNamespace(
        tiles=tiles, combine=combine, shared_bytes=tile.shared_bytes, columns=columns
    )


@cuda.jit
def _copy(x, copy):
    """Copy a matrix of any strides. Threads: one per column, blocks stride over the rows."""
    column = cuda.grid(1)
    if column < x.shape[1]:
        for row in range(types.int64(cuda.blockIdx.y), x.shape[0], cuda.gridDim.y):
            copy[row, column] = x[row, column]
