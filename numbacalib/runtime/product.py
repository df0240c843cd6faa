"""Tensor-core products on Hopper: one tile of ``A^T B`` in registers, fed by the copy engine.

Two blocks, a cluster, work on one tile: each copies half of B into the shared memory of both, which
saves a third of the L2 cache's traffic. A block is three warpgroups. A warp of the last issues tensor
copies that fill a ring of stages in shared memory; the first two multiply, 64 rows of the tile each.
`tile_product` builds both halves as device functions; a kernel puts them into a loop over tiles and
finishes the result.

A float32 operand is passed as two float16 matrices, high and low (`gptq_hessian_update.operands.split`):
their three largest products carry 22 of float32's 24 bits.

Tensor cores truncate when they add: a sum of one sign becomes too small by a share that grows with its
length, to 2.8e-5 over 8192 rows, and varies with its mantissa. If channels are correlated, that error is of
low rank, with eigenvalues up to K times as large: for 28672 channels more than damping compensates. So sums
of 64 or 128 rows are added to a total that is rounded to nearest.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.bindings import driver
from numba.cuda import types

from numbacalib.runtime import ptx, wgmma
from numbacalib.runtime.device import cuda
from numbacalib.runtime.streams import check

ROWS = 64
"""Rows of the operands (the summed axis) in one stage."""
CLUSTER = 2
"""Blocks that share the columns of B, each with its own rows of the tile."""
BLOCK_ROWS = 128
TILE_ROWS = CLUSTER * BLOCK_ROWS
BOX_BYTES = ROWS * 128
"""Bytes of a copied box: 64 rows of 128 bytes, swizzled so that no two rows of eight share a bank."""
WIDTH = 128
"""Columns whose products run at a time."""
WARPS = 8
"""Warps that multiply."""
THREADS = 32 * (WARPS + 4)
SLAB_ROWS, SLAB_COLUMNS, SLAB_STRIDE = 16, 32, 36
"""Part of its result that a warp stages at a time; the stride has few bank conflicts either way."""
SLAB_BYTES = 4 * SLAB_ROWS * SLAB_STRIDE
SHARED_LIMIT = 227 * 1024
ALIGNMENT = 1024
"""Swizzled boxes repeat every 1024 bytes."""
SWIZZLE_128 = 1 << 62


@functools.cache
def tile_product(element: str, columns: int, split: bool) -> SimpleNamespace:
    """Build device functions for tiles of 256 x `columns` (128 or 256) of ``A^T B``, 128 rows per block.

    `element` is "bf16" or "f16". With `split` the operands are pairs, high and low. Tiles of 256 columns
    need less bandwidth, and more registers.
    """
    add_product = wgmma.adder_of_products(element, ROWS)
    parts = 2 if split else 1
    a_bytes, b_bytes = BLOCK_ROWS // 64 * BOX_BYTES, columns // 64 * BOX_BYTES
    part_bytes = a_bytes + b_bytes
    stage_bytes = parts * part_bytes
    slab_bytes = WARPS * SLAB_BYTES
    stages = (SHARED_LIMIT - ALIGNMENT - slab_bytes) // (stage_bytes + 16)
    slab_offset = stages * stage_bytes
    full_offset = slab_offset + slab_bytes
    empty_offset = full_offset + 8 * stages
    zero = (np.float32(0),) * (WIDTH // 2)
    half_bytes = WIDTH // 64 * BOX_BYTES
    # from 64 columns to the next 64, and from 8 rows to the next 8, in units of 16 bytes
    layout = SWIZZLE_128 | (1024 >> 4) << 32 | (BOX_BYTES >> 4) << 16

    @cuda.jit(device=True, forceinline=True)
    def descriptor(address):
        # an address in a cluster has the block's rank above these 18 bits
        return types.uint64((address & 0x3FFFF) >> 4) | types.uint64(layout)

    @cuda.jit(device=True, forceinline=True)
    def begin(base):
        """Set up the ring's barriers; every thread calls this."""
        if cuda.threadIdx.x == 0:
            for stage in range(stages):
                ptx.barrier_init(base + full_offset + 8 * stage, 1)
                ptx.barrier_init(base + empty_offset + 8 * stage, WARPS * CLUSTER)
            ptx.fence_barrier_init()
        ptx.cluster_sync()

    @cuda.jit(device=True, forceinline=True)
    def after(stage, phase):
        """Next stage of the ring, and the parity of its barriers' phase."""
        stage += 1
        if stage == stages:
            return types.int32(0), types.int32(phase ^ 1)
        return types.int32(stage), types.int32(phase)

    @cuda.jit(device=True, forceinline=True)
    def produce(base, left, right, row, column, first, last, stage, phase):
        """Copy row blocks `first` to `last` for the tile at `row`, `column`; one warp calls this.

        `left` and `right` hold one tensor map of A and of B, or two with `split`. Each block of the
        cluster copies its own part of A, and half of B to both. Returns the next stage and phase.
        """
        rank = types.int32(ptx.cluster_rank())
        row += rank * BLOCK_ROWS
        column += rank * (columns // CLUSTER)
        for block in range(first, last):
            full = base + full_offset + 8 * stage
            ptx.barrier_wait(base + empty_offset + 8 * stage, phase ^ 1)
            ptx.barrier_expect(full, stage_bytes)
            for part in range(parts):
                a = base + stage * stage_bytes + part * part_bytes
                b = a + a_bytes + rank * (b_bytes // CLUSTER)
                for box in range(BLOCK_ROWS // 64):
                    target, at = a + box * BOX_BYTES, row + 64 * box
                    ptx.copy_box(target, left[part], at, block * ROWS, full)
                for box in range(columns // CLUSTER // 64):
                    target, at = b + box * BOX_BYTES, column + 64 * box
                    ptx.copy_box_to(target, right[part], at, block * ROWS, full, 3)
            stage, phase = after(stage, phase)
        return stage, phase

    @cuda.jit(device=True, forceinline=True)
    def release(base, stage):
        """Signal both blocks of the cluster, whose copies fill the stage, that it may be refilled."""
        if cuda.laneid < CLUSTER:
            ptx.barrier_arrive(base + empty_offset + 8 * stage, cuda.laneid)

    @cuda.jit(device=True, forceinline=True)
    def operands(base, stage):
        """Addresses of this warpgroup's 64 columns of A and of all of B."""
        start = base + stage * stage_bytes
        group = types.int32(cuda.threadIdx.x >> 7)
        return start + group * BOX_BYTES, start + a_bytes

    @cuda.jit(device=True, forceinline=True)
    def multiply(base, first, last, stage, phase):
        """Sum row blocks `first` to `last`, each rounded to nearest when it is added.

        The two warpgroups take turns: one's products run while the other adds, or waits for a stage.
        Returns the sum and the next stage and phase.
        """
        total = zero
        partial = zero
        for _ in range(first, last):
            ptx.barrier_wait(base + full_offset + 8 * stage, phase)
            a, b = operands(base, stage)
            if split:
                # the small products first, while truncation errors are small too
                a_low, b_low = a + part_bytes, b + part_bytes
                partial = add_product(partial, descriptor(a), descriptor(b_low), 0)
                partial = add_product(partial, descriptor(a_low), descriptor(b), 1)
            partial = add_product(partial, descriptor(a), descriptor(b), split)
            partial = wgmma.wait(partial)
            release(base, stage)
            total = wgmma.fragment_add(total, partial)
            stage, phase = after(stage, phase)
        return total, stage, phase

    @cuda.jit(device=True, forceinline=True)
    def pair_product(registers, a, b, next_a, next_b, two):
        """Product of the rows of two stages, or of one, in the given registers."""
        registers = add_product(registers, descriptor(a), descriptor(b), 0)
        if two:
            registers = add_product(registers, descriptor(next_a), descriptor(next_b), 1)
        return wgmma.wait(registers)

    @cuda.jit(device=True, forceinline=True)
    def multiply_wide(base, first, last, stage, phase):
        """Sum row blocks `first` to `last`, each pair rounded to nearest when it is added.

        Halves of the columns take turns, since registers hold the partial sum of only one. See `multiply`.
        """
        left = zero
        right = zero
        partial = zero
        for block in range(first, last, 2):
            two = block + 1 < last
            here = stage
            ptx.barrier_wait(base + full_offset + 8 * here, phase)
            stage, phase = after(stage, phase)
            if two:
                ptx.barrier_wait(base + full_offset + 8 * stage, phase)
            a, b = operands(base, here)
            next_a, next_b = operands(base, stage)
            partial = pair_product(partial, a, b, next_a, next_b, two)
            left = wgmma.fragment_add(left, partial)
            b, next_b = b + half_bytes, next_b + half_bytes
            partial = pair_product(partial, a, b, next_a, next_b, two)
            release(base, here)
            if two:
                release(base, stage)
                stage, phase = after(stage, phase)
            right = wgmma.fragment_add(right, partial)
        return left + right, stage, phase

    return SimpleNamespace(
        begin=begin,
        produce=produce,
        multiply=multiply if columns == WIDTH else multiply_wide,
        slab_offset=slab_offset,
        shared_bytes=ALIGNMENT + empty_offset + 8 * stages,
    )


@cuda.jit(device=True, forceinline=True)
def store_slab(fragment, slab, address):
    """Store part `slab`, 16 rows and 32 columns of a warp's result, at a shared address."""
    row, pair = cuda.laneid >> 2, cuda.laneid & 3
    offset = 4 * (row * SLAB_STRIDE + 2 * pair)
    wgmma.fragment_store(fragment, slab, address + offset, 4 * 8 * SLAB_STRIDE)
    cuda.syncwarp()


@functools.lru_cache(maxsize=1024)
def tensor_map(
    device: int, address: int, rows: int, columns: int, row_bytes: int
) -> tuple[int, Any]:
    """Describe a row-major matrix of 16-bit elements to the copy engine, in boxes of a stage.

    Returns the description's address on the device and the object that keeps it alive. Descriptions are
    cached, since uploading one leaves the device idle for longer than a launch.
    """
    encoded = check(
        driver.cuTensorMapEncodeTiled(
            driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_UINT16,
            2,
            address,
            [driver.cuuint64_t(columns), driver.cuuint64_t(rows)],
            [driver.cuuint64_t(row_bytes)],
            [driver.cuuint32_t(64), driver.cuuint32_t(ROWS)],
            [driver.cuuint32_t(1), driver.cuuint32_t(1)],
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    )
    # memory of no stream, and a copy that is complete on return: any stream may use it
    words = cuda.to_device(np.array([int(word) for word in encoded.opaque], np.uint64))
    return words.__cuda_array_interface__["data"][0], words
