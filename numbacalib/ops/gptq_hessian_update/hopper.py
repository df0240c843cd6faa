"""Tensor-core form of the Hessian update, for compute capability 9.0.

Tiles with an element on or above the diagonal are computed, each by one cluster, and written twice.
Whole rounds of tiles (one a cluster) come first; the tiles left over are cut along the rows of x into
pieces, whose sums `combine` adds in order.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from numba.cuda import types

from numbacalib.ops.gptq_hessian_update import operands
from numbacalib.runtime import device, product, ptx, wgmma
from numbacalib.runtime.device import DeviceArray, cuda
from numbacalib.runtime.finite_gpu import NONE
from numbacalib.runtime.half import widen
from numbacalib.runtime.launch import launch
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

BAND = 8
"""Tiles in a column of a band: what runs at the same time shares its columns of x in the L2 cache."""
CHUNK_BYTES = 256 << 20
"""Bound on the two halves of a float32 block; longer blocks are taken in chunks of rows."""
CHUNK_ROWS = 16384
"""Bound on the rows of a 16-bit block: sums of chunks are added in order, which bounds rounding errors."""
MAX_PIECES = 32
COMBINE_WARPS, COMBINE_BATCH = 4, 4


class Operand(NamedTuple):
    """The x of a product ``x^T x`` as tensor cores take it."""

    parts: list[DeviceArray]
    """Itself, or high and low: [B, K], whose rows start at multiples of 16 bytes."""
    scales: DeviceArray | None
    """[K] of high and low, see `operands.split`."""
    begin: int = 0
    """First of the columns that are multiplied."""


class Target(NamedTuple):
    """A symmetric matrix that becomes ``beta * before + alpha * x^T x``."""

    before: DeviceArray
    after: DeviceArray
    """Rows of both are contiguous, at one stride."""
    alpha: float
    beta: float
    first_bad: DeviceArray
    """Of a `FiniteCheck`; nothing is written where it holds an index."""
    mirror: bool = True
    """False to write no element below the diagonal."""


def subtract_square(matrix: DeviceArray, operand: Operand, first_bad: DeviceArray) -> None:
    """Subtract ``x^T x`` from the upper triangle of a float32 matrix, whose rows are at any stride."""
    target = Target(matrix, matrix, -1.0, 1.0, first_bad, mirror=False)
    _update(_kernels("f16", 128, True), operand, target)


def rank_update(
    hessian: DeviceArray,
    x: DeviceArray,
    alpha: float,
    beta: float,
    out: DeviceArray,
    first_bad: DeviceArray,
) -> None:
    """Set `out` to ``beta * hessian + alpha * x^T x``; x in float32 or as a 16-bit carrier.

    Nothing is written where `first_bad` of a `FiniteCheck` holds an index.
    """
    rows, columns = x.shape
    if hessian.address != out.address and not (
        hessian.dtype == out.dtype and hessian.is_c_contiguous()
    ):
        grid = -(-columns // 256), min(columns, 32768)
        launch(_widen, grid, 256, hessian, out, first_bad)
        hessian = out
    halves = x.dtype.itemsize == 2
    length = CHUNK_ROWS if halves else max(ROWS, CHUNK_BYTES // (4 * columns) // ROWS * ROWS)
    for first in range(0, rows, length):
        chunk = x[first : first + length]
        if halves:
            kernels = _kernels("f16" if x.dtype == np.uint16 else "bf16", 256, False)
            operand = Operand([operands.aligned(chunk)], None)
            _update(kernels, operand, Target(hessian, out, alpha, beta, first_bad))
        else:
            kernels = _kernels("f16", 128, True)
            *parts, scales = operands.split(chunk)
            _update(kernels, Operand(parts, scales), Target(hessian, out, alpha, beta, first_bad))
            factor = np.float32(alpha)
            launch(_add_nonfinite, columns, 256, chunk, scales, out, factor, first_bad)
        hessian, beta = out, 1.0


def _update(kernels: SimpleNamespace, operand: Operand, target: Target) -> None:
    """Launch the product of one block."""
    number = device.current_device()
    clusters = _multiprocessors(number) // CLUSTER
    rows, size = len(operand.parts[0]), len(target.after)
    tiles, blocks = _tile_count(size, kernels.columns), -(-rows // ROWS)
    whole, pieces = _schedule(tiles, blocks, clusters)
    rest = (tiles - whole) * pieces
    partials = device.empty((rest, TILE_ROWS, kernels.columns), np.float32)
    maps = [
        product.tensor_map(number, part.address, *part.shape, part.strides[0])
        for part in operand.parts
    ]
    work = (blocks, whole + rest, whole, pieces)
    scales = 0 if operand.scales is None else operand.scales.address + 4 * operand.begin
    sizes = size, target.after.strides[0] // 4, int(target.mirror)
    factors = np.float32(target.alpha), np.float32(target.beta)
    matrices = target.before.address, target.after.address
    arguments = (partials.address, scales, *matrices, *sizes, *factors, target.first_bad)
    grid = CLUSTER * min(clusters, whole + rest)
    high, low = maps[0][0], maps[-1][0]
    launch(
        kernels.tiles,
        grid,
        THREADS,
        high,
        low,
        operand.begin,
        *work,
        *arguments,
        shared_bytes=kernels.shared_bytes,
    )
    if rest:
        slabs = (tiles - whole) * TILE_ROWS // SLAB_ROWS * kernels.columns // SLAB_COLUMNS
        grid = slabs // COMBINE_WARPS
        launch(kernels.combine, grid, 32 * COMBINE_WARPS, whole, pieces, *arguments)


@functools.cache
def _multiprocessors(number: int) -> int:
    """Multiprocessors of the current device, which is device `number`."""
    return cuda.get_current_device().MULTIPROCESSOR_COUNT


def _tile_count(size: int, columns: int) -> int:
    """Tiles of 256 x `columns` with an element on or above the diagonal."""
    step = TILE_ROWS // columns
    bands, column_tiles = -(-size // TILE_ROWS), -(-size // columns)
    return bands * column_tiles - step * bands * (bands - 1) // 2


def _schedule(tiles: int, blocks: int, clusters: int) -> tuple[int, int]:
    """Return how many tiles are computed whole, and into how many pieces the others are cut."""
    whole = tiles // clusters * clusters
    rest = tiles - whole

    def rounds(pieces: int) -> float:
        return -(-rest * pieces // clusters) / pieces

    most = min(MAX_PIECES, max(1, blocks // 4), max(1, 2 * clusters // max(rest, 1)))
    pieces = min(range(1, most + 1), key=rounds)
    return (tiles, 1) if pieces == 1 else (whole, pieces)


@functools.cache
def _kernels(element: str, columns: int, split: bool) -> SimpleNamespace:
    """Compile the kernels for tiles of 256 x `columns`."""
    tile = product.tile_product(element, columns, split)
    begin, produce, multiply = tile.begin, tile.produce, tile.multiply
    slab_offset = tile.slab_offset
    step = TILE_ROWS // columns

    @cuda.jit(device=True, forceinline=True)
    def tile_at(index, size):
        """First row and column of a tile by its number: by bands of rows, in a band by columns."""
        row_tiles = (size + TILE_ROWS - 1) // TILE_ROWS
        column_tiles = (size + columns - 1) // columns
        top = types.int64(0)
        while True:
            height = min(BAND, row_tiles - top)
            left = step * (top + height)
            across = step * height * (height + 1) // 2
            inside = across + (column_tiles - left) * height
            if index < inside:
                break
            index -= inside
            top += height
        if index >= across:
            row, column = top + (index - across) % height, left + (index - across) // height
        else:
            column = step * top
            while index >= (column // step - top) + 1:
                index -= (column // step - top) + 1
                column += 1
            row = top + index
        return row * TILE_ROWS, column * columns

    @cuda.jit(device=True, forceinline=True)
    def item_at(item, size, blocks, whole, pieces):
        """Tile and range of row blocks of a work item: a whole tile, or a piece of one."""
        if item < whole:
            row, column = tile_at(item, size)
            return row, column, types.int64(0), blocks
        piece = (item - whole) % pieces
        row, column = tile_at(whole + (item - whole) // pieces, size)
        return row, column, blocks * piece // pieces, blocks * (piece + 1) // pieces

    @cuda.jit(device=True, forceinline=True)
    def update(total, r, c, before, size, pitch, scales, alpha, beta):
        """New element of the matrix from the sum of products, on and above the diagonal."""
        if split:
            of_row = ptx.load_constant(scales + 4 * min(r, size - 1))
            scale = of_row * ptx.load_constant(scales + 4 * min(c, size - 1))
            # twice, since the square may not be representable
            total = total * scale * scale
        old = ptx.load_if((before + 4 * r * pitch) + 4 * c, r <= c and c < size)
        return updated(old, total, alpha, beta)

    @cuda.jit(device=True, forceinline=True)
    def write_slab(shared, slab, row, column, after, size, pitch, mirror):
        """Write a warp's slab of new elements, which starts at `row`, `column`.

        With `mirror` to both triangles, else above the diagonal and on it.
        """
        lane = types.int64(cuda.laneid)
        c = column + lane
        last = c - row if c < size else types.int64(-1)
        for k in range(SLAB_ROWS):
            value = shared[types.uint64(slab + k * SLAB_STRIDE + lane)]
            ptx.store_if(after + 4 * ((row + k) * pitch + c), value, k <= last)
        half, k = lane // SLAB_ROWS, lane % SLAB_ROWS
        r = row + k
        for j in range(half, SLAB_COLUMNS, 2):
            c = column + j
            value = shared[types.uint64(slab + k * SLAB_STRIDE + j)]
            ptx.store_if(after + 4 * (c * pitch + r), value, mirror != 0 and r < c and c < size)
        cuda.syncwarp()

    @cuda.jit(device=True, forceinline=True)
    def keep_slab(shared, slab, partials, index):
        """Write a warp's slab to the sums of a piece, as one of its runs of 512 numbers."""
        lane = types.int64(cuda.laneid)
        for k in range(SLAB_ROWS):
            value = shared[types.uint64(slab + k * SLAB_STRIDE + lane)]
            ptx.store_if(partials + 4 * ((index * SLAB_ROWS + k) * SLAB_COLUMNS + lane), value, 1)
        cuda.syncwarp()

    slabs = columns // SLAB_COLUMNS
    tile_slabs = slabs * CLUSTER * WARPS
    combine_floats = COMBINE_WARPS * SLAB_BYTES // 4

    @cuda.jit(launch_bounds=(THREADS, 1), lto=False)
    def tiles(
        high,
        low,
        left,
        blocks,
        items,
        whole,
        pieces,
        partials,
        scales,
        before,
        after,
        size,
        pitch,
        mirror,
        alpha,
        beta,
        first_bad,
    ):
        """Clusters stride over work items; in a block, warps have the roles that `product` gives."""
        ptx.cluster_of_two()
        if first_bad[0] < NONE:
            return
        shared = cuda.shared.array(0, types.float32)
        start = types.int64(ptx.shared_address(shared))
        base = (start + ALIGNMENT - 1) & -ALIGNMENT
        begin(base)
        rank = types.int64(ptx.cluster_rank())
        warp = types.int64(cuda.threadIdx.x >> 5)
        stage = phase = types.int32(0)
        item = types.int64(cuda.blockIdx.x // CLUSTER)
        clusters = types.int64(cuda.gridDim.x // CLUSTER)
        if warp >= WARPS:
            ptx.registers_shrink()
            if warp == WARPS:
                ptx.tensormap_acquire(high)
                ptx.tensormap_acquire(low)
                while item < items:
                    row, column, first, last = item_at(item, size, blocks, whole, pieces)
                    row, column = left + row, left + column
                    stage, phase = produce(
                        base, (high, low), row, column, first, last, stage, phase
                    )
                    item += clusters
        else:
            ptx.registers_grow()
            slab_address = base + slab_offset + warp * SLAB_BYTES
            slab = (slab_address - start) // 4
            lane = types.int64(cuda.laneid)
            while item < items:
                row, column, first, last = item_at(item, size, blocks, whole, pieces)
                row += rank * BLOCK_ROWS + warp * SLAB_ROWS
                total, stage, phase = multiply(base, first, last, stage, phase)
                if item < whole:
                    # All of the old matrix is read before the first store: reads wait behind stores.
                    # So the old and the new matrix may be the same, too.
                    arguments = (before, size, pitch, scales, alpha, beta)
                    r, c = row + lane // 4, column + lane % 4 * 2
                    total = wgmma.fragment_map(total, update, r, c, arguments)
                for part in range(slabs):
                    product.store_slab(total, part, slab_address)
                    if item < whole:
                        c = column + part * SLAB_COLUMNS
                        write_slab(shared, slab, row, c, after, size, pitch, mirror)
                    else:
                        index = ((item - whole) * CLUSTER + rank) * WARPS + warp
                        keep_slab(shared, slab, partials, index * slabs + part)
                item += clusters
        # the other block may still copy to this one
        ptx.cluster_sync()

    @cuda.jit
    def combine(
        whole,
        pieces,
        partials,
        scales,
        before,
        after,
        size,
        pitch,
        mirror,
        alpha,
        beta,
        first_bad,
    ):
        """Add the pieces of the tiles after the whole ones, in order. One warp a slab."""
        if first_bad[0] < NONE:
            return
        shared = cuda.shared.array(combine_floats, types.float32)
        lane, warp = types.int64(cuda.laneid), types.int64(cuda.threadIdx.x >> 5)
        index = types.int64(cuda.blockIdx.x) * COMBINE_WARPS + warp
        tile, index = index // tile_slabs, index % tile_slabs
        row, column = tile_at(whole + tile, size)
        row += index // slabs * SLAB_ROWS
        column += index % slabs * SLAB_COLUMNS
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
            r, c = row + k, column + lane
            value = update(total[k], r, c, before, size, pitch, scales, alpha, beta)
            shared[slab + k * SLAB_STRIDE + lane] = value
        cuda.syncwarp()
        write_slab(shared, slab, row, column, after, size, pitch, mirror)

    return SimpleNamespace(
        tiles=tiles,
        combine=combine,
        shared_bytes=tile.shared_bytes,
        columns=columns,
    )


@cuda.jit
def _widen(hessian, out, first_bad):
    """Copy a matrix of any type and strides. One thread a column, blocks stride over the rows."""
    column = cuda.grid(1)
    if column < out.shape[1] and first_bad[0] == NONE:
        for row in range(types.int64(cuda.blockIdx.y), out.shape[0], cuda.gridDim.y):
            out[row, column] = widen(hessian[row, column])


@cuda.jit
def _add_nonfinite(x, scales, out, alpha, first_bad):
    """Add the products of columns that hold a NaN or infinity. One block a column, nearly all idle."""
    i = types.int64(cuda.blockIdx.x)
    if scales[i] != 0 or first_bad[0] < NONE:
        return
    for j in range(cuda.threadIdx.x, x.shape[1], cuda.blockDim.x):
        if scales[j] == 0 and j < i:
            continue
        total = np.float32(0)
        for row in range(x.shape[0]):
            total += x[row, i] * x[row, j]
        value = out[i, j] + alpha * total
        out[i, j] = value
        out[j, i] = value
