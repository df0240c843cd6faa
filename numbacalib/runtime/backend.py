"""Which backend a call runs on: told by its arrays, without importing a GPU library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np


def is_cuda_array(array: Any) -> bool:
    """Whether `array` lives on a CUDA device (Numba's simulated device arrays included)."""
    return _interface(array) is not None


def _interface(array: Any) -> Any:
    """The CUDA array interface of `array`; None if it has none."""
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None and hasattr(array, "__cuda_ndarray__"):
        return array  # the simulator's arrays have no interface
    return interface


def arrays_of_one_device(**arrays: Any) -> tuple:
    """Return arrays as kernels take them, in their order; None stands for absent ones.

    For what calls several ops on the same arrays: shapes and dtypes are then NumPy's, whatever library
    the arrays are of.

    Raises
    ------
    TypeError
        If an argument is no array, or the arrays are on different devices.
    """
    interfaces = _interfaces(arrays)
    return tuple(arrays.values()) if interfaces is None else _taken(arrays, interfaces)


def _interfaces(arrays: dict[str, Any]) -> dict[str, Any] | None:
    """CUDA array interfaces by name; None for NumPy arrays. A TypeError for anything else."""
    interfaces = {}
    on_gpu = on_cpu = False
    for name, array in arrays.items():
        if isinstance(array, np.ndarray):
            on_cpu = True
        elif array is not None:
            interfaces[name] = _interface(array)
            on_gpu = True
            if interfaces[name] is None:
                raise TypeError(
                    f"{name}: expected a NumPy or CUDA array, got "
                    f"{type(array).__module__}.{type(array).__qualname__}"
                )
    if on_cpu and on_gpu:
        where = ", ".join(
            f"{name} on the {'GPU' if name in interfaces else 'CPU'}"
            for name, array in arrays.items()
            if array is not None
        )
        raise TypeError(f"expected all arrays of one call on one device, got {where}")
    return interfaces if on_gpu else None


def _taken(arrays: dict[str, Any], interfaces: dict[str, Any]) -> tuple:
    from numbacalib.runtime import device

    return tuple(
        None if array is None else device.device_array(array, interfaces[name])
        for name, array in arrays.items()
    )


Kernels = TypeVar("Kernels")
"""A module: type checkers and editors follow its names."""


class call(Generic[Kernels]):  # noqa: N801 - used like a function
    """Open a call of an op: ``with call(cpu, gpu, ...) as (kernels, *arrays)``.

    What comes are the twin of the op that its arrays take, and the arrays in their order: CUDA arrays
    of any library as our kernels take them. What is launched inside goes to `stream`. None stands for
    absent arrays, and for the stream of the enclosing call or the default stream.

    Parameters
    ----------
    cpu : module
        Kernels for NumPy arrays.
    gpu : function that returns a module, or None
        Kernels for CUDA arrays, imported where one was seen; None where an op has none.
    stream : CUDA stream, optional
    **arrays
        By the names that errors use.

    Raises
    ------
    TypeError
        If an argument is no array, if the arrays are on different devices or on one that the op has
        no kernels for, or if a stream is given for NumPy arrays.
    """

    def __init__(
        self, cpu: Kernels, gpu: Callable[[], Any] | None, stream: Any = None, **arrays: Any
    ) -> None:
        self._cpu = cpu
        self._gpu = gpu
        self._stream = stream
        self._arrays = arrays
        self._token: Any = None

    def __enter__(self) -> tuple[Kernels, *tuple[Any, ...]]:
        interfaces = _interfaces(self._arrays)
        if interfaces is None:
            if self._stream is not None:
                kind = type(self._stream).__name__
                raise TypeError(f"stream: expected None with NumPy arrays, got {kind}")
            return self._cpu, *self._arrays.values()
        if self._gpu is None:
            raise TypeError(f"{next(iter(interfaces))}: expected a NumPy array, got a CUDA array")
        from numbacalib.runtime import device

        if self._stream is not None:
            self._token = device.enter_stream(self._stream)
        taken = _taken(self._arrays, interfaces)
        return self._gpu(), *taken

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            from numbacalib.runtime import device

            device.leave_stream(self._token)


def may_share_memory(left: Any, right: Any) -> bool:
    """Whether the address ranges of two arrays of one device overlap."""
    if isinstance(left, np.ndarray):
        return np.may_share_memory(left, right)
    from numbacalib.runtime import device

    return device.may_share_memory(left, right)
