"""Blocks of the simulator whose threads run in turns: barriers hold, missing ones show, errors come out."""

import numpy as np
import pytest
from numba import cuda

THREADS = 4


@cuda.jit
def reverse_twice(numbers, missing):
    """Reverse through shared memory, twice: without one of the barriers a thread reads too early."""
    shared = cuda.shared.array(THREADS, np.int64)
    thread = cuda.threadIdx.x
    shared[thread] = -1
    cuda.syncthreads()
    shared[thread] = numbers[thread]
    if missing != 0:
        cuda.syncthreads()
    found = shared[THREADS - 1 - thread]
    cuda.syncthreads()
    shared[thread] = found
    if missing != 1:
        cuda.syncthreads()
    numbers[thread] = shared[THREADS - 1 - thread]


@pytest.mark.parametrize(("missing", "right"), [(None, True), (0, False), (1, False)])
def test_a_missing_barrier_shows(backend, missing, right):
    numbers = np.arange(THREADS)
    reverse_twice[1, THREADS](numbers, -1 if missing is None else missing)
    assert (numbers == np.arange(THREADS)).all() == right


@cuda.jit
def count_odd(found):
    y, x = cuda.threadIdx.y, cuda.threadIdx.x
    found[cuda.blockIdx.x, y, x] = cuda.syncthreads_count((x + y) % 2)


def test_threads_have_places_and_are_counted(backend):
    found = np.zeros((3, 2, 5), np.int64)
    count_odd[3, (5, 2)](found)
    assert (found == 5).all()


@cuda.jit
def end_early(found, failing):
    thread = cuda.threadIdx.x
    if thread % 2:
        return
    cuda.syncthreads()
    if thread == failing:
        raise ValueError("thread failed")
    found[thread] = thread


def test_threads_that_end_are_not_waited_for(backend):
    found = np.zeros(THREADS, np.int64)
    end_early[1, THREADS](found, -1)
    np.testing.assert_array_equal(found, [0, 0, 2, 0])


@pytest.mark.parametrize("failing", [0, 2])
def test_an_error_of_a_thread_ends_the_block(backend, failing):
    with pytest.raises(ValueError, match="thread failed"):
        end_early[1, THREADS](np.zeros(THREADS, np.int64), failing)
