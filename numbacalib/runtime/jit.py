"""One way to compile: the options that every CPU kernel and spec function shares.

No fastmath anywhere: the order of additions is the same at any vector width and thread count.
`error_model="numpy"` makes division follow IEEE 754 instead of raising, as NumPy does.
"""

from __future__ import annotations

from numba import njit

scalar = njit(error_model="numpy")
"""For spec functions: compiled into their callers; numba-cuda compiles the same source again."""

kernel = njit(parallel=True, cache=True, nogil=True, error_model="numpy")
"""For CPU kernels: parallel, cached on disk, callable from several Python threads."""
