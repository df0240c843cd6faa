"""Dispatch of a call to the CPU or to a GPU by its arrays, without importing a GPU library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np

from numbacalib.runtime.array import CUDA_DLPACK, DeviceArray

_ON_HOST = {np.ndarray, type(None)}
"""Types of arguments that kernels take unchanged. Ops called by a method get these, or our device arrays:
the caller's arrays were checked when the method opened its call, and are not checked again."""
_OURS = {DeviceArray, type(None)}
"""Types of arguments that are our device arrays, or absent."""


def is_cuda_array(array: Any) -> bool:
    """Return whether `array` lives on a CUDA device (Numba's simulated device arrays included)."""
    return type(array) not in _ON_HOST and _interface(array) is not None


def _interface(array: Any) -> Any:
    """Return the CUDA array interface of an array, or one of our or Numba's arrays itself, else None."""
    if type(array) is DeviceArray or hasattr(array, "__cuda_ndarray__"):
        return array  # Numba's have no interface in the simulator; all these have a slow one
    return getattr(array, "__cuda_array_interface__", None)


class _Call:
    """A call on the arrays of one device, open from `_open` to the end of the ``with``."""

    def __init__(self, stream: Any, in_place: str | None, arrays: dict[str, Any]) -> None:
        self._stream = stream
        self._in_place = in_place
        self._arrays = arrays
        self._on_gpu: Any = None

    def _open(self) -> tuple:
        taken = tuple(self._arrays.values())
        if self._stream is not None or not _ON_HOST.issuperset(map(type, taken)):
            taken = self._looked_at()
        if any(name.startswith("out") for name in self._arrays):
            try:
                _require_own_memory(dict(zip(self._arrays, taken, strict=True)), self._in_place)
            except ValueError:
                self.__exit__()
                raise
        return taken

    def _looked_at(self) -> tuple:
        """Check the arrays' kinds and devices, and return them in the form that kernels take."""
        ours = _OURS.issuperset(map(type, self._arrays.values()))
        interfaces = self._arrays if ours else _interfaces(self._arrays)
        if interfaces:
            from numbacalib.runtime import device

            self._on_gpu = device.open_call(self._stream, self._arrays, interfaces)
            return self._on_gpu.arrays
        if self._stream is not None:
            kind = type(self._stream).__name__
            raise TypeError(f"stream: expected None with NumPy arrays, got {kind}")
        return tuple(map(_plain, self._arrays.values()))

    def __exit__(self, *_: object) -> None:
        if self._on_gpu is not None:
            self._on_gpu.close()


class arrays_of_one_device(_Call):  # noqa: N801 - used like a function
    """Open a call of a function that calls several ops: ``with arrays_of_one_device(...) as (a, b)``.

    It gives the arrays in order, in the form that kernels take: NumPy's as plain arrays of the same memory,
    CUDA arrays of any library with NumPy's shapes and dtypes, None for absent ones. All kernels launched
    inside go to one stream, ordered after the streams that produce the arrays; see
    `numbacalib.runtime.streams`.

    Raises
    ------
    TypeError
        If an argument is not an array or is a masked one, or if the arrays are on different devices.
    """

    def __init__(self, **arrays: Any) -> None:
        super().__init__(None, None, arrays)

    def __enter__(self) -> tuple:
        return self._open()


Kernels = TypeVar("Kernels")
"""A module: type checkers and editors follow its names."""


class call(_Call, Generic[Kernels]):  # noqa: N801 - used like a function
    """Open a call of an op: ``with call(cpu, gpu, ...) as (kernels, *arrays)``.

    It gives the op's twin for the device of the arrays, and the arrays as `arrays_of_one_device` does.

    Parameters
    ----------
    cpu : module
        Kernels for NumPy arrays.
    gpu : function that returns a module, or None
        Kernels for CUDA arrays, imported once one was seen; None if an op has none.
    stream : CUDA stream, optional
        Where to launch; by default on the stream of the enclosing call, or of the arrays.
    in_place : str, optional
        Name of the array that a result may overwrite.
    **arrays
        By the names that errors use. Those called "out", or "out[0]" and so on, are results, which must
        share no memory with the others.

    Raises
    ------
    TypeError
        If an argument is not an array or is a masked one, if the arrays are on different devices or on one
        that the op has no kernels for, or if a stream is given for NumPy arrays.
    ValueError
        If a result shares memory with another array.
    """

    def __init__(
        self,
        cpu: Kernels,
        gpu: Callable[[], Any] | None,
        stream: Any = None,
        in_place: str | None = None,
        **arrays: Any,
    ) -> None:
        super().__init__(stream, in_place, arrays)
        self._cpu = cpu
        self._gpu = gpu

    def __enter__(self) -> tuple[Kernels, *tuple[Any, ...]]:
        if self._gpu is None:
            for name, array in self._arrays.items():
                if is_cuda_array(array):
                    raise TypeError(f"{name}: expected a NumPy array, got a CUDA array")
        taken = self._open()
        if self._on_gpu is None or self._gpu is None:
            return self._cpu, *taken
        return self._gpu(), *taken


def _plain(array: Any) -> Any:
    """Return a NumPy array without its subclass; None for None."""
    return array if array is None or type(array) is np.ndarray else array.view(np.ndarray)


def _require_own_memory(arrays: dict[str, Any], in_place: str | None) -> None:
    """Raise a ValueError if a result shares memory with another array of the call."""
    for name, out in arrays.items():
        if not name.startswith("out") or out is None or name.partition("[")[0] != "out":
            continue  # a weight may be called out_proj
        for other, array in arrays.items():
            if array is None or other in (name, in_place) or not may_share_memory(out, array):
                continue
            raise ValueError(f"{name}: expected memory of its own, got memory shared with {other}")


def _interfaces(arrays: dict[str, Any]) -> dict[str, Any]:
    """CUDA array interfaces by name; none for NumPy arrays. A TypeError for anything else.

    An array that only has DLPack is replaced by CuPy's array over its memory.
    """
    interfaces = {}
    on_cpu = []
    for name, array in arrays.items():
        if array is None:
            continue
        if type(array) is np.ndarray or (
            isinstance(array, np.ndarray) and not isinstance(array, np.ma.MaskedArray)
        ):
            on_cpu.append(name)
            continue
        interface = _interface(array)
        if interface is None and hasattr(array, "__dlpack_device__"):
            arrays[name] = _by_dlpack(array)
            interface = _interface(arrays[name])
        if interface is None:
            raise TypeError(
                f"{name}: expected a NumPy or CUDA array, got "
                f"{type(array).__module__}.{type(array).__qualname__}"
            )
        interfaces[name] = interface
    if on_cpu and interfaces:
        where = ", ".join(
            f"{name} on the {'GPU' if name in interfaces else 'CPU'}"
            for name, array in arrays.items()
            if array is not None
        )
        raise TypeError(f"expected all arrays of one call on one device, got {where}")
    return interfaces


def _by_dlpack(array: Any) -> Any:
    """Return CuPy's view of an array on a CUDA device, ordered on CuPy's stream; None for others."""
    if array.__dlpack_device__()[0] != CUDA_DLPACK:
        return None
    import cupy

    return cupy.from_dlpack(array)


def may_share_memory(left: Any, right: Any) -> bool:
    """Return whether the address ranges of two arrays of one device overlap."""
    if isinstance(left, np.ndarray):
        return np.may_share_memory(left, right)
    from numbacalib.runtime import device

    return device.may_share_memory(left, right)
