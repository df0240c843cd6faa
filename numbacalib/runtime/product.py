"""Tensor-core products on Hopper: one tile of ``A^T B`` in registers, fed by the copy engine.

A block is three warpgroups. One thread of the last issues tensor copies that fill a ring of stages in
shared memory; the first two multiply, 64 rows of the tile each. `tile_product` builds both halves as
device functions; a kernel puts them into a loop over tiles and finishes the result as it likes.

A float32 operand comes as two float16 matrices, high and low (`operands.split`): their three largest
products carry 22 of float32's 24 bits. Tensor cores truncate where they add, so for float32 each
64-row sum is added to a total that is rounded to nearest.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.bindings import driver
from numba import cuda
from numba.cuda import types

from numbacalib.runtime import ptx
from numbacalib.runtime.workspace import check

ROWS = 64
"""Rows of the operands (the summed axis) in one stage."""
TILE_ROWS = 128
BOX_BYTES = ROWS * 128
"""A copied box: 64 rows of 128 bytes, swizzled so that no two rows of eight share a bank."""
WARPS = 8
"""Warps that multiply."""
THREADS = 32 * (WARPS + 4)
SLAB_ROWS, SLAB_COLUMNS, SLAB_STRIDE = 16, 32, 36
"""What a warp stages of its result at a time; the stride has few bank conflicts either way."""
SLAB_BYTES = 4 * SLAB_ROWS * SLAB_STRIDE
SHARED_LIMIT = 227 * 1024
ALIGNMENT = 1024
"""Swizzled boxes repeat every 1024 bytes."""
SWIZZLE_128 = 1 << 62


@functools.cache
def tile_product(element: str, columns: int, split: bool) -> SimpleNamespace:
    """Device functions for tiles of 128 x `columns` (128 or 256) of ``A^T B``.

    `element` is "bf16" or "f16". With `split`, an operand is two maps, high and low. Tiles of 128
    columns leave registers for totals that are rounded to nearest; tiles of 256 columns need less
    bandwidth and leave the sum to the tensor cores.
    """
    wgmma = ptx.wgmma_bf16 if element == "bf16" else ptx.wgmma_f16
    parts = 2 if split else 1
    a_bytes, b_bytes = TILE_ROWS // 64 * BOX_BYTES, columns // 64 * BOX_BYTES
    part_bytes = a_bytes + b_bytes
    stage_bytes = parts * part_bytes
    slab_bytes = WARPS * SLAB_BYTES
    stages = (SHARED_LIMIT - ALIGNMENT - slab_bytes) // (stage_bytes + 16)
    slab_offset = stages * stage_bytes
    full_offset = slab_offset + slab_bytes
    empty_offset = full_offset + 8 * stages
    zero = (np.float32(0),) * (columns // 2)
    # from 64 columns to the next 64, and from 8 rows to the next 8, in units of 16 bytes
    layout = SWIZZLE_128 | (1024 >> 4) << 32 | (BOX_BYTES >> 4) << 16

    @cuda.jit(device=True, forceinline=True)
    def descriptor(address):
        return types.uint64(address >> 4) | types.uint64(layout)

    @cuda.jit(device=True, forceinline=True)
    def begin(base):
        """Set up the ring's barriers; every thread calls this."""
        if cuda.threadIdx.x == 0:
            for stage in range(stages):
                ptx.barrier_init(base + full_offset + 8 * stage, 1)
                ptx.barrier_init(base + empty_offset + 8 * stage, WARPS)
            ptx.fence_proxy_async()
        cuda.syncthreads()

    @cuda.jit(device=True, forceinline=True)
    def produce(base, maps, a_column, b_column, first, last, count):
        """Copy row blocks `first` to `last`; one thread calls this, after `count` earlier blocks."""
        for block in range(first, last):
            stage = count % stages
            full = base + full_offset + 8 * stage
            ptx.barrier_wait(base + empty_offset + 8 * stage, ((count // stages) & 1) ^ 1)
            ptx.barrier_expect(full, stage_bytes)
            target = base + stage * stage_bytes
            for part in range(parts):
                tensormap = maps + types.uint64(128 * part)
                for column in range(0, TILE_ROWS, 64):
                    ptx.copy_box(target, tensormap, a_column + column, block * ROWS, full)
                    target += BOX_BYTES
                for column in range(0, columns, 64):
                    ptx.copy_box(target, tensormap, b_column + column, block * ROWS, full)
                    target += BOX_BYTES
            count += 1

    @cuda.jit(device=True, forceinline=True)
    def release(base, stage):
        if cuda.laneid == 0:
            ptx.barrier_arrive(base + empty_offset + 8 * stage)

    @cuda.jit(device=True, forceinline=True)
    def operands(base, stage):
        """Addresses of this warpgroup's 64 columns of A and of all of B."""
        start = base + stage * stage_bytes
        group = types.int64(cuda.threadIdx.x >> 7)
        return start + group * BOX_BYTES, start + a_bytes

    @cuda.jit(device=True, forceinline=True)
    def multiply(base, first, last, count):
        """Sum row blocks `first` to `last` in the tensor cores' own accumulators."""
        total = zero
        previous = types.int64(0)
        for block in range(first, last):
            stage = count % stages
            ptx.barrier_wait(base + full_offset + 8 * stage, (count // stages) & 1)
            a, b = operands(base, stage)
            total = wgmma(total, descriptor(a), descriptor(b), block != first)
            ptx.wgmma_wait_previous()
            if block != first:
                release(base, previous)
            previous = stage
            count += 1
        total = ptx.wgmma_wait(total)
        release(base, previous)
        return total

    @cuda.jit(device=True, forceinline=True)
    def multiply_rounded(base, first, last, count):
        """Sum row blocks `first` to `last`, each rounded to nearest when it is added."""
        total = zero
        partial = zero
        for block in range(first, last):
            stage = count % stages
            ptx.barrier_wait(base + full_offset + 8 * stage, (count // stages) & 1)
            a, b = operands(base, stage)
            if split:
                # the small products first: what is truncated then is small too
                a_low, b_low = a + part_bytes, b + part_bytes
                partial = wgmma(partial, descriptor(a), descriptor(b_low), 0)
                partial = wgmma(partial, descriptor(a_low), descriptor(b), 1)
            partial = wgmma(partial, descriptor(a), descriptor(b), split)
            partial = ptx.wgmma_wait(partial)
            release(base, stage)
            total = ptx.fragment_add(total, partial)
            count += 1
        return total

    return SimpleNamespace(
        begin=begin,
        produce=produce,
        multiply=multiply_rounded if columns == 128 else multiply,
        slab_offset=slab_offset,
        shared_bytes=ALIGNMENT + empty_offset + 8 * stages,
    )


@cuda.jit(device=True, forceinline=True)
def store_slab(fragment, slab, address):
    """Put part `slab`, 16 rows and 32 columns of a warp's result, at a shared address."""
    row, pair = cuda.laneid >> 2, cuda.laneid & 3
    offset = 4 * (row * SLAB_STRIDE + 2 * pair)
    ptx.fragment_store(fragment, slab, address + offset, 4 * 8 * SLAB_STRIDE)
    cuda.syncwarp()


def launch(kernel: Any, blocks: int, stream: Any, shared_bytes: int, *arguments: Any) -> None:
    """Launch a product kernel, with more shared memory than a block gets unasked."""
    compiled = kernel.specialize(*arguments)
    (definition,) = compiled.overloads.values()
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    function = definition.library.get_cufunc()
    device = cuda.current_context().device.id
    check(driver.cuKernelSetAttribute(attribute, shared_bytes, function.handle, device))
    compiled[blocks, THREADS, stream, shared_bytes](*arguments)


def tensor_map(matrix: Any) -> list[int]:
    """Describe a row-major matrix of 16-bit elements to the copy engine, as 16 words.

    The rows must start at multiples of 16 bytes.
    """
    rows, columns = matrix.shape
    kinds = driver.CUtensorMapDataType, driver.CUtensorMapInterleave, driver.CUtensorMapSwizzle
    encoded = check(
        driver.cuTensorMapEncodeTiled(
            kinds[0].CU_TENSOR_MAP_DATA_TYPE_UINT16,
            2,
            matrix.__cuda_array_interface__["data"][0],
            [driver.cuuint64_t(columns), driver.cuuint64_t(rows)],
            [driver.cuuint64_t(matrix.strides[0])],
            [driver.cuuint32_t(64), driver.cuuint32_t(ROWS)],
            [driver.cuuint32_t(1), driver.cuuint32_t(1)],
            kinds[1].CU_TENSOR_MAP_INTERLEAVE_NONE,
            kinds[2].CU_TENSOR_MAP_SWIZZLE_128B,
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    )
    return [int(word) for word in encoded.opaque]
