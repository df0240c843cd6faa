"""Sums and maxima over the threads of a block, as functions for `@cuda.jit` kernels.

Each thread has stored its part in shared memory, ``parts[thread]``; the number of threads is a power of
two. Parts are combined in a tree, so that the order is the same in every run.
"""

from __future__ import annotations

from numbacalib.runtime.device import cuda


@cuda.jit(device=True)
def block_sum(parts, thread):
    """Sum of all parts, for every thread of the block."""
    cuda.syncthreads()
    half = parts.shape[0] // 2
    while half > 0:
        if thread < half:
            parts[thread] += parts[thread + half]
        cuda.syncthreads()
        half //= 2
    return parts[0]


@cuda.jit(device=True)
def block_max(parts, thread):
    """Largest of all parts, for every thread of the block."""
    cuda.syncthreads()
    half = parts.shape[0] // 2
    while half > 0:
        if thread < half:
            parts[thread] = max(parts[thread], parts[thread + half])
        cuda.syncthreads()
        half //= 2
    return parts[0]


@cuda.jit(device=True)
def largest_of_block(parts, own, thread):
    """Largest of the threads' values, for every thread of the block, whatever `parts` held before."""
    cuda.syncthreads()  # all threads have read the result before this one
    parts[thread] = own
    return block_max(parts, thread)


@cuda.jit(device=True)
def sum_of_block(parts, own, thread):
    """Sum of the threads' values, for every thread of the block, whatever `parts` held before."""
    cuda.syncthreads()
    parts[thread] = own
    return block_sum(parts, thread)
