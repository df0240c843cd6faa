"""Addresses of the routines of SciPy's BLAS and LAPACK, without importing the package around them.

`import scipy.linalg` is slow, mostly for its other functions, and we only call routines of two of its
compiled modules. So these are loaded alone. They are registered only while Numba checks for BLAS, so that a
later import of `scipy.linalg` loads all of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType

import scipy

PACKAGE = "scipy.linalg"
LIBRARIES = {"cython_blas": ("gemm", "syrk", "trmm", "trsm"), "cython_lapack": ("potrf", "trtri")}
"""Its modules, and the routines used from each, in single and double precision."""


@contextmanager
def _libraries_alone() -> Iterator[dict[str, ModuleType]]:
    """Load the modules; they stay registered only if their package is loaded too."""
    try:
        yield {library: _load(f"{PACKAGE}.{library}") for library in LIBRARIES}
    finally:
        if PACKAGE not in sys.modules:
            for library in LIBRARIES:
                sys.modules.pop(f"{PACKAGE}.{library}", None)


def _load(name: str) -> ModuleType:
    """Load a compiled module alone; with its package if that is loaded, or has another layout."""
    folder = Path(scipy.__file__).parent / "linalg"
    spec = None if PACKAGE in sys.modules else PathFinder.find_spec(name, [str(folder)])
    if spec is None or spec.loader is None:
        return import_module(name)
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


with _libraries_alone() as _modules:
    import numba.np.arraymath  # noqa: F401  (looks for BLAS)
    from numba.extending import get_cython_function_address

    ADDRESSES = {
        kind + routine: get_cython_function_address(f"{PACKAGE}.{library}", kind + routine)
        for library, routines in LIBRARIES.items()
        for routine in routines
        for kind in "sd"
    }
    """Address of each routine, such as ``sgemm``: all arguments by reference, dimensions as C ints."""
    FILE = _modules["cython_blas"].__file__
    """A library that links to SciPy's BLAS."""
