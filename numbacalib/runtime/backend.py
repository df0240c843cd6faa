"""Which backend a call runs on: told by the types of its arrays, without importing a GPU library."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import numpy as np


def is_cuda_array(array: Any) -> bool:
    """Whether `array` lives on a CUDA device (Numba's simulated device arrays included)."""
    return hasattr(array, "__cuda_array_interface__") or hasattr(array, "__cuda_ndarray__")


def backend_of(**arrays: Any) -> str:
    """Return ``"cpu"`` or ``"gpu"`` for the named arrays of one call; None stands for absent ones.

    Raises
    ------
    TypeError
        If an argument is no array, or if the arrays are on different devices.
    """
    places = {}
    for name, array in arrays.items():
        if array is None:
            continue
        if is_cuda_array(array):
            places[name] = "gpu"
        elif isinstance(array, np.ndarray):
            places[name] = "cpu"
        else:
            raise TypeError(
                f"{name}: expected a NumPy or CUDA array, got {type(array).__module__}."
                f"{type(array).__qualname__}"
            )
    if len(set(places.values())) > 1:
        where = ", ".join(
            f"{name} on the {'GPU' if place == 'gpu' else 'CPU'}" for name, place in places.items()
        )
        raise TypeError(f"expected all arrays of one call on one device, got {where}")
    return next(iter(places.values()))


def kernels_of(op: str, **arrays: Any) -> ModuleType:
    """Import and return the module of `op` (a package name) whose kernels take these arrays."""
    module = f"{op}.{backend_of(**arrays)}"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        name = op.rpartition(".")[2]
        raise NotImplementedError(f"{name} has no GPU kernel yet: pass NumPy arrays") from None
