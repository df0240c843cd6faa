"""Libraries whose arrays are filled late, on a stream of theirs."""

import cupy
import numpy as np
import torch
from numba import cuda

DELAY = 400_000_000
"""Clock cycles, a fifth of a second."""


class Torch:
    """Arrays of torch, which name no stream: it is the current one."""

    def __init__(self):
        self.stream = torch.cuda.Stream()

    def empty(self, array):
        return torch.full(array.shape, torch.nan, device="cuda")

    def current(self):
        return torch.cuda.stream(self.stream)

    def delay(self):
        torch.cuda._sleep(DELAY)

    def fill(self, late, array):
        late.copy_(array)

    def source(self, array):
        return torch.from_numpy(array).cuda()

    def host(self, result):
        return torch.from_dlpack(result).clone().cpu().numpy()


class Cupy:
    """Arrays of CuPy, which name the current stream."""

    def __init__(self):
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self._sleeper = torch.cuda.ExternalStream(self.stream.ptr)

    def empty(self, array):
        return cupy.full(array.shape, cupy.nan, cupy.float32)

    def current(self):
        return self.stream

    def delay(self):
        with torch.cuda.stream(self._sleeper):
            torch.cuda._sleep(DELAY)

    def fill(self, late, array):
        cupy.copyto(late, array)

    def source(self, array):
        return cupy.asarray(array)

    def host(self, result):
        return cupy.from_dlpack(result).copy().get()


class Numba:
    """Arrays of Numba that name a stream of theirs."""

    def __init__(self):
        self.stream = cuda.stream()
        self._sleeper = torch.cuda.ExternalStream(int(self.stream.handle))

    def empty(self, array):
        return cuda.to_device(np.full_like(array, np.nan)).bind(self.stream)

    def current(self):
        return torch.cuda.stream(torch.cuda.default_stream())

    def delay(self):
        with torch.cuda.stream(self._sleeper):
            torch.cuda._sleep(DELAY)

    def fill(self, late, array):
        late.copy_to_device(array, stream=self.stream)

    def source(self, array):
        return cuda.to_device(array)

    def host(self, result):
        return result.copy_to_host()


class NumbaDefault(Numba):
    """Arrays of Numba that name none: they are made on its default stream."""

    def __init__(self):
        self.stream = cuda.default_stream()
        self._sleeper = torch.cuda.default_stream()

    def empty(self, array):
        return cuda.to_device(np.full_like(array, np.nan))


LIBRARIES = {"torch": Torch, "cupy": Cupy, "numba": Numba, "numba's default": NumbaDefault}
