"""Every public function comes after whatever makes its arrays, and its results before what is asked next.

Arrays are made late, on a stream that waits for a long kernel first, and hold NaN until then: a function
that does not wait sees NaN.
"""

import inspect
import subprocess
import sys

import cupy
import ml_dtypes
import numpy as np
import pytest
import torch
from gpu.libraries import LIBRARIES, Cupy, Numba, Torch
from gpu.public_functions import ARRAYS, FUNCTIONS, GRID, ON_THE_HOST, STORED, K, N
from numba import cuda

import numbacalib
from numbacalib import methods, statistics
from numbacalib.methods import rtn
from numbacalib.statistics import InputStatistics


def arrays_of(result, take):
    """Numbers of a result on the host, in order; `take` reads an array."""
    if hasattr(result, "copy_to_host"):
        return [take(result)]
    if isinstance(result, (list, tuple)):
        return [array for item in result for array in arrays_of(item, take)]
    if hasattr(result, "codes"):
        return [take(array) for array in (result.codes, result.scales, result.zeros)]
    return [result]


@pytest.fixture(scope="module")
def expected():
    """Results of each function from arrays that are there."""
    found = {}
    for name, (function, *names) in FUNCTIONS.items():
        result = function(*(cuda.to_device(ARRAYS[each]()) for each in names))
        found[name] = arrays_of(result, lambda array: array.copy_to_host())
    return found


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_comes_after_its_producer_and_before_what_reads_it(name, library, expected):
    function, *names = FUNCTIONS[name]
    made = LIBRARIES[library]()
    sources = [made.source(ARRAYS[each]()) for each in names]
    late = [made.empty(ARRAYS[each]()) for each in names]
    torch.cuda.synchronize()
    with made.current():
        made.delay()
        for target, source in zip(late, sources, strict=True):
            made.fill(target, source)
        result = function(*late)
        # copies run on the library's stream, and wait for nothing else
        found = arrays_of(result, made.host)
    assert len(found) == len(expected[name])
    for ours, theirs in zip(found, expected[name], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_every_public_function_is_tested():
    tested = {part.strip() for name in FUNCTIONS for part in name.split(",")}
    public = {
        name
        for room in (numbacalib, methods, statistics)
        for name in room.__all__
        if inspect.isfunction(getattr(room, name)) or hasattr(getattr(room, name), "update")
    }
    assert public - tested == ON_THE_HOST | STORED


def test_does_not_wait_for_the_host():
    made = Torch()
    late = made.empty(ARRAYS["inputs"]())
    numbacalib.fisher_information(late)
    torch.cuda.synchronize()
    with made.current():
        made.delay()
        result = numbacalib.fisher_information(late)
        assert not made.stream.query()
    assert int(result.stream.handle) == made.stream.cuda_stream
    assert result.__cuda_array_interface__["stream"] == made.stream.cuda_stream


def test_arrays_of_two_streams_are_both_waited_for():
    """The call runs on one; the other comes after it, where it would write over what is read."""
    made, other = Torch(), Cupy()
    host = ARRAYS["inputs"](), ARRAYS["weight"]()
    expected = numbacalib.awq_channel_scores(*map(cuda.to_device, host)).copy_to_host()
    source, late = other.source(host[1]), other.empty(host[1])
    first_source, first = made.source(host[0]), made.empty(host[0])
    torch.cuda.synchronize()
    with made.current(), other.current():
        other.delay()
        other.fill(late, source)
        made.delay()
        made.fill(first, first_source)
        result = numbacalib.awq_channel_scores(first, late)
        late.fill(cupy.nan)
        found = made.host(result)
    np.testing.assert_array_equal(found, expected)


def test_statistics_go_on_on_another_stream():
    inputs = ARRAYS["inputs"]()
    once = InputStatistics(K)
    for part in np.split(inputs, 4):
        once.update(cuda.to_device(part))
    statistics, made = InputStatistics(K), [Torch(), Cupy(), Torch(), Numba()]
    for library, part in zip(made, np.split(inputs, 4), strict=True):
        source, late = library.source(part), library.empty(part)
        torch.cuda.synchronize()
        with library.current():
            library.delay()
            library.fill(late, source)
            statistics.update(late)
    for kind in ("hessian", "mean_abs", "max_abs"):
        np.testing.assert_array_equal(
            getattr(statistics, kind).copy_to_host(), getattr(once, kind).copy_to_host()
        )


@pytest.mark.parametrize("read", [torch.from_dlpack, cupy.from_dlpack], ids=["torch", "cupy"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", torch.bfloat16, "float32"], ids=str)
def test_results_are_arrays_of_other_libraries(dtype, read):
    quantized = rtn(cuda.to_device(ARRAYS["weight"]()), **GRID, scale_dtype=dtype)
    for array in (quantized.codes, quantized.scales, quantized.zeros, quantized.dequantize(dtype)):
        taken = read(array)
        assert str(taken.dtype).removeprefix("torch.") == array.dtype.name
        wide = taken.float().cpu().numpy() if read is torch.from_dlpack else taken.get()
        np.testing.assert_array_equal(
            np.asarray(wide, np.float64), array.copy_to_host().astype(np.float64)
        )
        again = read(array)  # the same memory, not a copy
        again[:] = 0
        assert not array.copy_to_host().any()


def test_torch_takes_results_as_tensors():
    quantized = rtn(cuda.to_device(ARRAYS["weight"]()), **GRID, scale_dtype="bfloat16")
    scales = torch.as_tensor(quantized.scales, device="cuda")
    assert scales.dtype == torch.bfloat16
    np.testing.assert_array_equal(
        scales.float().cpu(), quantized.scales.copy_to_host().astype(np.float32)
    )


def test_bfloat16_goes_in_again():
    """A result as an input: by itself, as torch's and as CuPy's."""
    weight = torch.from_numpy(ARRAYS["weight"]()).cuda().bfloat16()
    stored = rtn(weight, **GRID, scale_dtype="bfloat16").dequantize(torch.bfloat16)
    expected = rtn(stored.copy_to_host(), **GRID).codes
    for array in (stored, torch.from_dlpack(stored), cupy.from_dlpack(stored)):
        np.testing.assert_array_equal(rtn(array, **GRID).codes.copy_to_host(), expected)
    with pytest.raises(TypeError, match="weight: expected dtype"):
        rtn(cuda.to_device(stored.copy_to_host().view("V2")), **GRID)


def test_a_result_outlives_the_stream_it_was_made_on():
    for _ in range(20):
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            inputs = cupy.ones((N, K), cupy.float32)
            result = numbacalib.fisher_information(inputs)
        del stream, inputs
        np.testing.assert_array_equal(result.copy_to_host(), np.ones(K))
        del result
    torch.cuda.synchronize()


def test_the_process_ends_quietly_while_results_are_alive():
    code = """
import logging
import numpy as np
from numba import cuda
import numbacalib
from numbacalib.statistics import InputStatistics
logging.getLogger("numbacalib").setLevel(logging.ERROR)  # it tells of kernels that are compiled
large = numbacalib.gptq_hessian_update(
    cuda.to_device(np.zeros((2048, 2048), np.float32)), cuda.to_device(np.ones((4, 2048), np.float32))
)
statistics = InputStatistics(64)
statistics.update(cuda.to_device(np.ones((4, 64), np.float32)))
kept = [large, statistics, numbacalib.fisher_information(cuda.to_device(np.ones((4, 64))))]
class Late:
    def __del__(self):
        kept.clear()
late = Late()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == ""


@pytest.mark.parametrize("library", ["torch", "cupy", "numba"])
@pytest.mark.parametrize(
    "name", ["fisher_information", "awq_channel_scores", "gptq_hessian_update"]
)
def test_results_on_an_input_are_refused(name, library):
    memory = LIBRARIES[library]().source(np.ones(4096, np.float32))
    parts = {
        "fisher_information": (memory[:2048].reshape(32, 64),),
        "awq_channel_scores": (memory[:1024].reshape(16, 64), memory[1024:2048].reshape(16, 64)),
        "gptq_hessian_update": (memory[:1024].reshape(32, 32), memory[1024:2048].reshape(32, 32)),
    }[name]
    out = memory[1000:2024].reshape(32, 32) if "update" in name else memory[2000:2064]
    with pytest.raises(ValueError, match="out: expected memory of its own"):
        getattr(numbacalib, name)(*parts, out=out)


def test_inputs_whose_squares_float32_cannot_sum_are_refused():
    inputs = ARRAYS["inputs"]()
    statistics = InputStatistics(K)
    statistics.update(cuda.to_device(inputs))
    for dtype in (np.float32, np.float64, ml_dtypes.bfloat16):
        bad = inputs.astype(dtype)
        bad[7, 5] = -1e19
        with pytest.raises(ValueError, match=r"inputs: expected magnitudes below .* at \[7, 5\]"):
            statistics.update(
                torch.from_numpy(bad.astype(np.float32))
                .cuda()
                .to({2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[bad.itemsize])
            )
    assert statistics.tokens == N
