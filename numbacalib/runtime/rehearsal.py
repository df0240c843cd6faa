"""Rehearsals: recording of the kernels that calls would launch, in a process that uses no device.

In such a process the CUDA driver and CuPy's libraries are stand-ins that accept everything and do nothing:
an array has an address and no memory, values read from it report no error, and a kernel is recorded instead
of launched. So the process needs no context, which takes a second to create while others create theirs,
leaves the device to the run, and may be killed at any time.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MEMORY = 1 << 37
"""Bytes of the pretended device memory."""


class Facts(NamedTuple):
    """Facts of a device and its driver that kernels and launches depend on."""

    capability: tuple[int, int]
    multiprocessors: int
    driver: int
    """CUDA version of the driver."""


class Noted(NamedTuple):
    """A kernel that would be launched."""

    kernel: Any
    kinds: tuple
    types: tuple
    """Numba's types of its arguments."""


def facts_of_device() -> Facts:
    """Return the facts of the current device."""
    from numbacalib.runtime.device import cuda, driver_versions

    found = cuda.get_current_device()
    capability = tuple(found.compute_capability)
    return Facts(capability, found.MULTIPROCESSOR_COUNT, driver_versions()[0])


def rehearse(facts: Facts) -> list[Noted]:
    """Record this process's launches from now on instead of running them; return the list, each once.

    Raises
    ------
    RuntimeError
        If the process may already have launched or allocated something.
    """
    if "numbacalib.runtime.driver_device" in sys.modules:
        raise RuntimeError("expected a process that has not used a device yet")
    from cuda import bindings
    from numba import cuda

    libraries = _Library()
    for name in ("cuda", "cuda.device"):
        sys.modules[f"cupy.{name}"] = libraries  # type: ignore[assignment]
    for name in ("", ".cuda", ".cuda.libs", ".cuda.libs.cublas", ".cuda.libs.cusolver"):
        sys.modules[f"cupy_backends{name}"] = libraries  # type: ignore[assignment]
    cupy = sys.modules["cupy"] = ModuleType("cupy")
    cupy.__spec__ = ModuleSpec("cupy", None)  # for `find_spec`
    cupy.cuda, cupy.ndarray = libraries, type("ndarray", (), {})  # type: ignore[attr-defined]

    device = SimpleNamespace(
        compute_capability=facts.capability, MULTIPROCESSOR_COUNT=facts.multiprocessors, id=0
    )
    context = SimpleNamespace(device=device)
    cuda.api.current_context = cuda.current_context = lambda *_: context
    cuda.get_current_device = lambda: device
    cuda.pinned_array = np.empty
    cuda.to_device = _constant
    driver = bindings.driver
    bindings.driver = _Driver(driver, facts)
    try:
        from numbacalib.runtime import cubins, packed_launch, product, transfers
    finally:
        bindings.driver = driver
    del packed_launch, product, transfers  # imported only to bind the stand-in
    noted: dict[tuple, Noted] = {}

    def note(kernel: Any, kinds: tuple, types: Callable[[], tuple]) -> int:
        if (kernel, kinds) not in noted:
            found = Noted(kernel, kinds, types())
            noted[kernel, kinds] = found
            launches.append(found)
        return 0

    launches: list[Noted] = []
    cubins.function = note
    return launches


class _Driver:
    """The driver's bindings, with functions that only report success."""

    def __init__(self, bindings: ModuleType, facts: Facts) -> None:
        self._bindings = bindings
        self._answers: dict[str, tuple] = {
            "cuCtxGetCurrent": (1,),
            "cuCtxGetDevice": (0,),
            "cuDeviceGetCount": (1,),
            "cuDriverGetVersion": (facts.driver,),
            "cuEventCreate": (1,),
            "cuMemGetInfo": (MEMORY, MEMORY),
            "cuStreamCreate": (1,),
            "cuTensorMapEncodeTiled": (SimpleNamespace(opaque=[0] * 16),),
        }

    def cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: Any) -> tuple:  # noqa: N802
        """Read 0, which reports no error."""
        del source, stream
        ctypes.memset(target, 0, size)
        return (self._bindings.CUresult.CUDA_SUCCESS,)

    def __getattr__(self, name: str) -> Any:
        if not (name[:2] == "cu" and name[2].isupper()):
            return getattr(self._bindings, name)  # a type or a constant
        answer = self._bindings.CUresult.CUDA_SUCCESS, *self._answers.get(name, ())
        return lambda *_: answer


class _Library(int):
    """A library of CuPy, and every attribute and result of it: 0."""

    addresses = itertools.count(MEMORY, 1 << 32)

    def alloc(self, size: int) -> Any:
        """Return a distinct address for an array."""
        del size
        return SimpleNamespace(ptr=next(self.addresses))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _constant(array: NDArray[Any]) -> Any:
    """Return a constant array on the device, with the attributes that launches use."""
    address = next(_Library.addresses)
    return SimpleNamespace(
        shape=array.shape,
        dtype=array.dtype,
        device_ctypes_pointer=SimpleNamespace(value=address),
        __cuda_array_interface__={"data": (address, False)},
    )
