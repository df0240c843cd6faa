"""Backends: the same tests run on NumPy arrays, in Numba's CUDA simulator and on a GPU.

`pytest --backend cudasim` (or `cuda`) is a process of its own, since Numba reads at import whether to
simulate. A backend that was asked for and is missing fails every test that needs it.
"""

import dataclasses
import importlib.util
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("numbacalib", deadline=None, max_examples=30, derandomize=True)
settings.register_profile("cudasim", deadline=None, max_examples=6, derandomize=True)


FOLDERS = {"gpu": "cuda", "simulator": "cudasim"}
"""Folders of tests that are for one backend alone."""
HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
"""What Python sets for signals that it was not told to ignore."""


def pytest_addoption(parser):
    parser.addoption("--backend", choices=("numpy", "cudasim", "cuda"), default="numpy")
    parser.addoption(
        "--kills", type=int, default=10, help="how often tests/quantizer/test_killed.py kills"
    )


def pytest_configure(config):
    # a fresh process that a test starts, in whatever folder, sees the package that the test sees
    package = Path(importlib.util.find_spec("numbacalib").origin).parents[1]
    searched = [str(package), str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, searched))
    os.environ["PYTHONSAFEPATH"] = "1"  # the checkout that it may be started in is another one
    # a shell that starts tests in the background, or nohup, has them and their processes ignore these
    for number, handler in HANDLERS.items():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    backend = config.getoption("--backend")
    settings.load_profile("cudasim" if backend == "cudasim" else "numbacalib")
    if backend == "numpy":  # what takes a GPU where there is one, takes the host here
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if backend == "cudasim":
        os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
        # the simulator's kernels are Python, whose floats warn where a device's do not
        config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning")


def pytest_ignore_collect(collection_path, config):
    """Leave folders out that are for another backend: a GPU, with torch there, or the simulator."""
    if collection_path.parent != Path(__file__).parent:
        return None
    only = FOLDERS.get(collection_path.name)
    return True if only not in (None, config.getoption("--backend")) else None


def pytest_collection_modifyitems(config, items):
    """In the simulator and on a GPU, leave out what neither `backend` runs nor is for these alone."""
    backend = config.getoption("--backend")
    if backend == "numpy":
        return
    if backend == "cudasim":
        from simulator import blocks  # not before the backend is chosen

        blocks.install()

    def is_its_own(item):
        return "backend" in item.fixturenames or FOLDERS.get(item.path.parent.name) == backend

    others = [item for item in items if not is_its_own(item)]
    items[:] = filter(is_its_own, items)
    config.hook.pytest_deselected(items=others)


class ForeignArray:
    """A GPU array of any strides and of any dtype, bfloat16 too, as other libraries have them."""

    def __init__(self, array):
        from numba import cuda

        whole = array
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        self._memory = cuda.to_device(whole.ravel(order="K").view(np.uint8))
        self.dtype = array.dtype  # the interface has no name for bfloat16
        start = self._memory.__cuda_array_interface__["data"][0]
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "strides": array.strides,
            "typestr": array.dtype.str,
            "data": (start + array.ctypes.data - whole.ctypes.data, False),
            "version": 3,
        }


class Backend:
    """Moves arrays to where the operation under test takes them, and results back."""

    def __init__(self, name):
        self.name = name

    def array(self, array):
        if self.name == "numpy":
            return array
        if self.name == "cudasim":
            from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

            return FakeCUDAArray(array)  # unlike to_device, of any strides
        from numba import cuda

        if array.flags.c_contiguous and array.dtype.kind in "fu":
            return cuda.to_device(array)
        return ForeignArray(array)

    def numpy(self, result):
        from numbacalib.ops.matrix import to_host  # not before the backend is chosen

        return to_host(result)

    def call(self, function, *arguments, **options):
        """Call a function with its arrays on this backend, and bring its results back."""
        moved = map(self._moved, arguments)
        return self._returned(function(*moved, **{k: self._moved(v) for k, v in options.items()}))

    def _moved(self, value):
        if isinstance(value, np.ndarray):
            return self.array(value)
        if isinstance(value, list):
            return [self._moved(item) for item in value]
        if dataclasses.is_dataclass(value) and hasattr(value, "codes"):
            return self._replaced(value, self.array)
        return value

    def _returned(self, value):
        if hasattr(value, "copy_to_host") or hasattr(value, "__cuda_array_interface__"):
            return self.numpy(value)
        if dataclasses.is_dataclass(value) and hasattr(value, "codes"):
            assert isinstance(value.codes, np.ndarray) == (self.name == "numpy")
            return self._replaced(value, self.numpy)
        if isinstance(value, list):
            return [self._returned(item) for item in value]
        if isinstance(value, tuple):
            items = [self._returned(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        return value

    def _replaced(self, quantized, convert):
        """Convert what of a quantized weight is on the device."""
        arrays = {name: convert(getattr(quantized, name)) for name in ("codes", "scales", "zeros")}
        return dataclasses.replace(quantized, **arrays)


@pytest.fixture(scope="session")
def backend(request):
    return Backend(request.config.getoption("--backend"))
