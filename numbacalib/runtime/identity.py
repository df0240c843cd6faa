"""Identity of a kernel beyond its sources: the values that its functions refer to."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import numpy as np

LIBRARIES = ("llvmlite", "numba", "numba_cuda", "numpy")
"""Packages whose functions and types are identified by their names and the packages' versions."""


def describe(value: Any, lines: list[int], inside: tuple[Any, ...] = ()) -> Any:
    """Return a value's identity: strings, numbers and tuples of them, the same in any process.

    A function's identity is its name and the variables that it uses from enclosing functions and its
    module, and the options of Numba's functions.

    Parameters
    ----------
    value : object
    lines : list of int
        Receives the functions' lines, since the file may have another function of the same name.
    inside : tuple of functions
        Functions that are being described.

    Raises
    ------
    TypeError
        If a value is neither a constant nor a type, a module or a function.
    """
    if isinstance(value, (bool, int, float, str, bytes, type(None))):
        return type(value).__name__, value
    if isinstance(value, (np.generic, np.ndarray)):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, Mapping):
        value = sorted(value.items())
    if isinstance(value, (tuple, list)):
        return tuple([describe(item, lines, inside) for item in value])
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, (type, BuiltinFunctionType)):
        return value.__module__, value.__qualname__
    function = _function(value)
    if function is not None:
        return _describe_function(function, getattr(value, "targetoptions", {}), lines, inside)
    if _package(type(value)) in LIBRARIES:  # an instance: types of arrays and numbers
        return type(value).__name__, repr(value)
    raise TypeError(f"expected a constant, type or function in a kernel, got {value!r}")


def code_size(kernel: Any) -> int:
    """Return the bytecode size of a kernel and of all functions that it calls, each counted once.

    It estimates which of two kernels takes longer to compile.
    """
    found: set[FunctionType] = set()

    def visit(value: Any) -> None:
        function = _function(value)
        if function is None or function in found or _package(function) in LIBRARIES:
            return
        found.add(function)
        used = inspect.getclosurevars(function)
        for inner in {**used.globals, **used.nonlocals}.values():
            visit(inner)

    visit(kernel)
    return sum(len(function.__code__.co_code) for function in found)


def _function(value: Any) -> FunctionType | None:
    """Return the Python function of a kernel, a Numba function or an intrinsic; None for other values."""
    function = getattr(value, "py_func", None) or getattr(value, "__wrapped__", value)
    return function if isinstance(function, FunctionType) else None


def _describe_function(
    function: FunctionType, options: Any, lines: list[int], inside: tuple[Any, ...]
) -> Any:
    name = function.__module__, function.__qualname__
    if function in inside or _package(function) in LIBRARIES:
        return name
    lines.append(function.__code__.co_firstlineno)
    used = inspect.getclosurevars(function)
    variables = {**used.globals, **used.nonlocals}
    return name, describe((options, variables), lines, (*inside, function))


def _package(value: Any) -> str:
    return value.__module__.partition(".")[0]
