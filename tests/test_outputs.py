"""Preallocated results of the four operations: where they may lie."""

import inspect

import cases
import numpy as np
import pytest

import numbacalib

M, K, N = 6, 8, 16


def arena():
    """Memory of which inputs and results are parts."""
    return np.random.default_rng(1).normal(size=4096).astype(np.float32)


def part(memory, start, *shape):
    return memory[start : start + int(np.prod(shape))].reshape(shape)


def hessian_in(memory, start):
    matrix = part(memory, start, K, K)
    matrix[:] = cases.random_hessian(1, K)
    return matrix


OPERATIONS = {
    "awq_channel_scores": (
        lambda memory: {
            "activations": part(memory, 0, N, K),
            "weights": part(memory, 1000, M, K),
        },
        [(K,)],
        {},
    ),
    "fisher_information": (lambda memory: {"gradients": part(memory, 0, N, K)}, [(K,)], {}),
    "gptq_hessian_update": (
        lambda memory: {"hessian": hessian_in(memory, 0), "x_block": part(memory, 1000, N, K)},
        [(K, K)],
        {},
    ),
    "gptq_quantize_column": (
        lambda memory: {"weight": part(memory, 0, M, K), "h_inv": hessian_in(memory, 1000)},
        [(M, K), (M, 2), (M, 2)],
        {"num_bits": 4, "group_size": 4, "symmetric": False},
    ),
}
STARTS = {"first": 0, "second": 1000}


def test_every_operation_with_out_is_here():
    with_out = {
        name
        for name in numbacalib.__all__
        if "out" in inspect.signature(getattr(numbacalib, name)).parameters
    }
    assert with_out == set(OPERATIONS)


def called(name, memory, starts):
    """Call an operation whose results begin at the given places of the memory."""
    make, shapes, options = OPERATIONS[name]
    inputs = make(memory)
    results = tuple(
        part(memory, start, *shape) for start, shape in zip(starts, shapes, strict=True)
    )
    out = results if len(results) > 1 else results[0]
    return getattr(numbacalib, name)(**inputs, **options, out=out)


def apart(name):
    """Places of results that share nothing."""
    return [2000 + 500 * i for i in range(len(OPERATIONS[name][1]))]


@pytest.mark.parametrize("name", OPERATIONS)
def test_results_on_an_input_are_refused(name):
    make, shapes, _ = OPERATIONS[name]
    for argument, input_start in zip(make(arena()), STARTS.values(), strict=False):
        for result, shape in enumerate(shapes):
            label = "out" if len(shapes) == 1 else rf"out\[{result}\]"
            # within it, over its begin, and its last element alone
            size = make(arena())[argument].size
            reach = input_start + size - 1
            begins = [input_start, input_start + 3, reach]
            if input_start:
                begins.append(input_start - int(np.prod(shape)) + 1)
            for begin in begins:
                memory, starts = arena(), apart(name)
                starts[result] = begin
                kept = memory.copy()
                make(kept)
                with pytest.raises(
                    ValueError, match=rf"^{label}: expected memory of its own, .* with {argument}$"
                ):
                    called(name, memory, starts)
                np.testing.assert_array_equal(memory, kept)


def test_results_on_each_other_are_refused():
    starts = apart("gptq_quantize_column")
    starts[2] = starts[1] + 5
    with pytest.raises(ValueError, match=r"^out\[1\]: expected memory of its own, .*out\[2\]$"):
        called("gptq_quantize_column", arena(), starts)


@pytest.mark.parametrize("name", OPERATIONS)
def test_results_beside_the_inputs_are_what_new_ones_are(name):
    make, _, options = OPERATIONS[name]
    expected = getattr(numbacalib, name)(**make(arena()), **options)
    memory, starts = arena(), apart(name)
    starts[0] = make(memory)[next(iter(make(memory)))].size  # right behind the first input
    found = called(name, memory, starts)
    for ours, theirs in zip(
        *((f,) if isinstance(f, np.ndarray) else f for f in (found, expected)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
        assert np.shares_memory(ours, memory)


def test_a_hessian_is_updated_in_place():
    memory = arena()
    inputs = OPERATIONS["gptq_hessian_update"][0](memory)
    expected = numbacalib.gptq_hessian_update(**inputs)
    found = numbacalib.gptq_hessian_update(**inputs, out=inputs["hessian"])
    assert found is inputs["hessian"]
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="^out: expected memory of its own, .*x_block$"):
        square = part(memory, 1000, K, K)
        numbacalib.gptq_hessian_update(square, square, out=square)


@pytest.mark.parametrize("name", OPERATIONS)
def test_read_only_results_are_refused(name):
    memory = arena()
    make, shapes, options = OPERATIONS[name]
    results = [np.empty(shape, np.float32) for shape in shapes]
    results[-1].flags.writeable = False
    out = tuple(results) if len(results) > 1 else results[0]
    with pytest.raises(ValueError, match=r"^out.*: expected a writable C-contiguous array"):
        getattr(numbacalib, name)(**make(memory), **options, out=out)


def test_a_part_of_large_gradients_is_refused():
    gradients = np.ones((400, 200_000 // 400), np.float32)
    with pytest.raises(ValueError, match="^out: expected memory of its own"):
        numbacalib.fisher_information(gradients, out=gradients.reshape(-1)[1000:1500])
