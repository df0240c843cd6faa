"""One way to compile: the options that every CPU kernel and spec function shares.

No fastmath anywhere: the order of additions is the same at any vector width and thread count.
`error_model="numpy"` makes division follow IEEE 754 instead of raising, as NumPy does.
"""

from __future__ import annotations

import multiprocessing  # noqa: F401  (Numba's first kernel would import it, while the caller waits)
from collections.abc import Callable
from functools import update_wrapper
from typing import Any

from numbacalib.runtime.threads import launching  # before Numba

from numba import njit  # isort: skip

scalar = njit(error_model="numpy")
"""For spec functions: compiled into their callers; numba-cuda compiles the same source again."""

_compile = njit(parallel=True, cache=True, nogil=True, error_model="numpy")


class kernel:  # noqa: N801  (a decorator)
    """Decorator for CPU kernels: parallel, cached on disk, callable from several Python threads."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._compiled = _compile(function)
        update_wrapper(self, function)

    def __call__(self, *arguments: Any) -> Any:
        with launching:
            return self._compiled(*arguments)
