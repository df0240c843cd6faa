"""Where the routines of SciPy's BLAS and LAPACK are, without the package around them.

`import scipy.linalg` takes as long as Numba's own import, mostly for what its other functions need, and we
call routines that two of its compiled modules hold. So these are loaded alone. They are registered only
while Numba looks whether there is BLAS, so that whoever imports `scipy.linalg` later finds all of it.
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

LIBRARIES = {
    "scipy.linalg.cython_blas": ("gemm", "syrk", "trmm"),
    "scipy.linalg.cython_lapack": ("potrf", "trtri"),
}
"""The modules, and the routines that are used of each, in single and double precision."""


@contextmanager
def _loaded_alone() -> Iterator[dict[str, ModuleType]]:
    """Load the modules; those that were not there before are registered only meanwhile."""
    absent = [name for name in LIBRARIES if name not in sys.modules]
    try:
        yield {name: _load(name) for name in LIBRARIES}
    finally:
        if "scipy.linalg" not in sys.modules:  # else they are its own
            for name in absent:
                sys.modules.pop(name, None)


def _load(name: str) -> ModuleType:
    """Load a compiled module alone; a SciPy that is laid out in another way is imported as usual."""
    spec = PathFinder.find_spec(name, [str(Path(scipy.__file__).parent / "linalg")])
    if name in sys.modules or spec is None or spec.loader is None:
        return import_module(name)
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


with _loaded_alone() as _modules:
    import numba.np.arraymath  # noqa: F401  (looks for BLAS)
    from numba.extending import get_cython_function_address

    ADDRESSES = {
        kind + routine: get_cython_function_address(name, kind + routine)
        for name, routines in LIBRARIES.items()
        for routine in routines
        for kind in "sd"
    }
    """Address of each routine, such as ``sgemm``: all arguments by reference, dimensions as C ints."""
    FILE = _modules["scipy.linalg.cython_blas"].__file__
    """A file that stands on SciPy's BLAS."""
