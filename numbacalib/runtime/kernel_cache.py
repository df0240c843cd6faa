"""Compiled kernels kept on disk, so that a machine compiles each once: the part with Numba's internals.

Numba's own cache raises on a damaged file, runs machine code in which a bit has flipped, does not read a
folder that it may not write to (a container image), raises if it can write nowhere, and treats a kernel as
stale only if its own file has changed, while ours are compiled from functions of many files.
"""

from __future__ import annotations

import pickle
import platform
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core.caching import CompileResultCacheImpl, NullCache
from numba.core.serialize import dumps

from numbacalib.runtime import kernel_files

VERSIONS = (
    sys.implementation.name,
    platform.python_version(),
    numba.__version__,
    llvmlite.__version__,
    np.__version__,
)
"""Versions of the compilers of this process's kernels, and of the packages that kernels refer to."""


class _Serializer(CompileResultCacheImpl):
    """Numba's serialization of a compiled function, without its search for a folder."""

    def __init__(self) -> None:
        pass


class KernelCache(NullCache):
    """Compiled forms of one kernel, one per signature, with the interface of Numba's caches.

    Parameters
    ----------
    function : callable
        A function of a module.

    Raises
    ------
    TypeError
        If the function is a closure, whose variables its file does not show.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        if function.__closure__:
            raise TypeError(f"{function.__qualname__}: expected a kernel without a closure")
        self._name = f"{function.__module__}.{function.__qualname__}"
        self._source = Path(function.__code__.co_filename)
        self._serializer = _Serializer()

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """Return the compiled form for a signature, or None."""
        target_context.refresh()  # registers the functions that compiled ones refer to
        payload = kernel_files.load(*self._identify(signature, target_context.codegen()))
        if payload is None:
            return None
        return self._serializer.rebuild(target_context, pickle.loads(payload))

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep the compiled form for a signature."""
        if compiled.library.has_dynamic_globals:
            raise TypeError(f"{self._name} holds an address of this process: it cannot be kept")
        payload = dumps(self._serializer.reduce(compiled))
        kernel_files.store(*self._identify(signature, compiled.library.codegen), payload)

    def _identify(self, signature: Any, codegen: Any) -> tuple[str, bytes]:
        """Return the file name of a form, and the identity that its contents depend on.

        A newer source or version changes only the identity, so that a stale file is replaced.
        """
        form = repr((self._name, str(signature), codegen.magic_tuple())).encode()
        name = f"{self._name}-{sha256(form).hexdigest()[:16]}.{sys.implementation.cache_tag}.nbc"
        return name, form + repr(VERSIONS).encode() + kernel_files.sources(self._source)
