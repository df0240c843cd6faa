"""CUDA arrays of every library, and the streams on which their values come to be."""

import cases
import cupy
import numpy as np
import pytest
import torch
from numba import cuda

import numbacalib
from numbacalib.methods import gptq
from numbacalib.runtime import driver_device

LIBRARIES = {
    "numba": cuda.to_device,
    "cupy": cupy.asarray,
    "torch": lambda array: torch.from_numpy(array).cuda(),
}
ROWS, COLUMNS = 300, 70


def gradients():
    return np.random.default_rng(1).normal(size=(ROWS, COLUMNS)).astype(np.float32)


def host(result):
    return cuda.as_cuda_array(result).copy_to_host()


@pytest.mark.parametrize("library", LIBRARIES)
def test_takes_arrays_of_every_library(library):
    expected = (gradients().astype(np.float64) ** 2).mean(axis=0)
    result = numbacalib.fisher_information(LIBRARIES[library](gradients()))
    assert isinstance(result, cuda.cudadrv.devicearray.DeviceNDArray)
    np.testing.assert_allclose(host(result), expected, rtol=1e-5)


@pytest.mark.parametrize("library", LIBRARIES)
def test_writes_into_the_callers_array(library):
    out = LIBRARIES[library](np.zeros(COLUMNS, np.float32))
    numbacalib.fisher_information(LIBRARIES[library](gradients()), out=out)
    expected = (gradients().astype(np.float64) ** 2).mean(axis=0)
    np.testing.assert_allclose(host(out), expected, rtol=1e-5)


def test_takes_bfloat16_of_torch():
    values = torch.from_numpy(gradients()).bfloat16()
    result = numbacalib.fisher_information(values.cuda())
    np.testing.assert_allclose(host(result), values.double().square().mean(0), rtol=1e-5)


def test_result_is_an_array_of_torch_and_cupy_too():
    result = numbacalib.fisher_information(cuda.to_device(gradients()))
    for taken in (torch.as_tensor(result, device="cuda").cpu().numpy(), cupy.asarray(result).get()):
        np.testing.assert_array_equal(taken, result.copy_to_host())


@pytest.mark.parametrize("kind", ["handle", "torch", "cupy", "numba"])
def test_runs_on_the_callers_stream(kind):
    """The values come to be on the stream long after the call, which must neither wait nor run ahead."""
    stream = torch.cuda.Stream()
    given = {
        "handle": lambda: stream.cuda_stream,
        "torch": lambda: stream,
        "cupy": lambda: cupy.cuda.Stream.from_external(stream),
        "numba": lambda: cuda.external_stream(stream.cuda_stream),
    }[kind]()
    source = torch.from_numpy(gradients()).cuda()
    late = torch.full_like(source, torch.nan)
    numbacalib.fisher_information(late)  # compiled, so that nothing waits below
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late.copy_(source)
    result = numbacalib.fisher_information(late, stream=given)
    assert not stream.query()
    stream.synchronize()
    np.testing.assert_allclose(host(result), (gradients().astype(np.float64) ** 2).mean(0), 1e-5)


def test_waits_for_the_producers_stream():
    """The CUDA array interface names the stream of the values, which need not be that of the call."""
    stream = cupy.cuda.Stream(non_blocking=True)
    source, late = cupy.asarray(gradients()), cupy.full((ROWS, COLUMNS), cupy.nan, cupy.float32)
    cupy.cuda.get_current_stream().synchronize()
    with stream:
        with torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr)):
            torch.cuda._sleep(200_000_000)
        cupy.copyto(late, source)
        result = numbacalib.fisher_information(late)
    np.testing.assert_allclose(host(result), (gradients().astype(np.float64) ** 2).mean(0), 1e-5)


def test_arrays_of_one_call_are_on_one_device():
    with pytest.raises(TypeError, match="activations on the GPU, weights on the CPU"):
        numbacalib.awq_channel_scores(cuda.to_device(gradients()), gradients())


class Counted:
    """An array of another library, which counts how often it is asked what it is."""

    def __init__(self, array):
        self._array = cupy.asarray(array)
        self.shape, self.dtype, self.looks = array.shape, array.dtype, 0

    @property
    def __cuda_array_interface__(self):
        self.looks += 1
        return self._array.__cuda_array_interface__


def test_arguments_of_gptq_are_looked_at_once():
    weight = Counted(cases.random_matrix(1, (64, 256), np.float32))
    hessian = Counted(cases.random_hessian(2, 256).astype(np.float32))
    gptq(weight, hessian, bits=4, group_size=64, act_order="desc", shrinkage=0.1)
    assert (weight.looks, hessian.looks) == (1, 1)


def test_results_are_not_taken_apart_again_within_a_call(monkeypatch):
    """Ops that a method calls take each other's results as they are: they are of its stream."""
    weight = cupy.asarray(cases.random_matrix(1, (64, 256), np.float32))
    hessian = cupy.asarray(cases.random_hessian(2, 256).astype(np.float32))
    taken, take = [], driver_device._taken

    def counted(name, *found):
        taken.append(name)
        return take(name, *found)

    monkeypatch.setattr(driver_device, "_taken", counted)
    gptq(weight, hessian, bits=4, group_size=64, act_order="desc", shrinkage=0.1)
    assert taken == ["weight", "hessian"]
