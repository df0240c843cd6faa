"""Calls on one of several GPUs: collected by `pytest --backend cuda` where there are two or more."""

import cases
import cupy
import numba.cuda
import numpy as np
import pytest
import torch

import numbacalib
from numbacalib.methods import gptq, rtn
from numbacalib.statistics import InputStatistics

GRID = {"bits": 4, "group_size": 64}


def weight():
    return cases.random_matrix(1, (64, 128), np.float32)


def hessian():
    return cases.random_hessian(2, 128).astype(np.float32)


def test_arrays_of_two_gpus_are_a_type_error():
    arrays = torch.from_numpy(weight()).to("cuda:0"), torch.from_numpy(hessian()).to("cuda:1")
    expected = (
        "expected all arrays of one call on one device, got weight on GPU 0, hessian on GPU 1"
    )
    with pytest.raises(TypeError, match=expected):
        gptq(*arrays, **GRID)
    with pytest.raises(TypeError, match="hessian on GPU 1, x_block on GPU 0"):
        numbacalib.gptq_hessian_update(*arrays[::-1])
    statistics = InputStatistics(128)
    statistics.update(arrays[0])
    with pytest.raises(TypeError, match="on GPU 1"):
        statistics.update(torch.from_numpy(weight()).to("cuda:1"))
    assert statistics.tokens == 64


class Interface:
    """An array of a library that speaks the array interface alone."""

    def __init__(self, array):
        self._owner = array
        self.__cuda_array_interface__ = array.__cuda_array_interface__


def test_every_kind_of_array_is_found_where_it_is():
    """Numba's arrays and mere interfaces name no device: their addresses do."""
    for number in (0, 1):
        with numba.cuda.gpus[number]:
            array = numba.cuda.to_device(weight())
        for kind in (array, Interface(array)):
            with pytest.raises(TypeError, match=f"gradients on GPU {number}"):
                numbacalib.fisher_information(
                    kind, out=torch.zeros(128, device=f"cuda:{1 - number}")
                )
            found = numbacalib.fisher_information(kind)
            with numba.cuda.gpus[number]:
                np.testing.assert_allclose(
                    found.copy_to_host(), (weight() ** 2).mean(axis=0), rtol=1e-5
                )


@pytest.mark.parametrize("number", [0, 1])
def test_runs_where_its_arrays_are(number):
    """Whichever GPU is the current one."""
    expected = gptq(weight(), hessian(), **GRID)
    for current in (0, 1):
        with torch.cuda.device(current):
            device = f"cuda:{number}"
            arrays = torch.from_numpy(weight()).to(device), torch.from_numpy(hessian()).to(device)
            found = gptq(*arrays, **GRID)
            codes = torch.from_dlpack(found.codes)
            assert codes.device.index == number
            attributes = cupy.cuda.runtime.pointerGetAttributes(codes.data_ptr())
            assert attributes.device == number
            differ = (codes.cpu().numpy() != expected.codes).mean()
            assert differ < 0.02
            assert found.report.loss == pytest.approx(expected.report.loss, rel=0.02)
            assert torch.cuda.current_device() == current
            stream = torch.cuda.Stream(number)
            with torch.cuda.stream(stream):
                torch.cuda._sleep(100_000_000)
                late = arrays[0] * 2
                rounded = torch.from_dlpack(rtn(late, **GRID).dequantize()).cpu()
            np.testing.assert_allclose(rounded, 2 * weight(), atol=1)
    with cupy.cuda.Device(number):
        array = cupy.asarray(weight())
    assert cupy.from_dlpack(numbacalib.fisher_information(array)).device.id == number
