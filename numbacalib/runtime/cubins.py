"""Compiled GPU kernels kept on disk, so that a machine compiles each of them once.

numba-cuda's own cache identifies kernels by their source alone, so it cannot keep closures, which ours are;
and its entries must be loaded by Numba, while ours are launched without Numba.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numba_cuda
import numpy as np
from cuda.bindings import driver, nvjitlink, nvvm
from cuda.core import Linker, LinkerOptions, ObjectCode
from numba import cuda

from numbacalib.runtime import kernel_files
from numbacalib.runtime.identity import describe
from numbacalib.runtime.notices import notices
from numbacalib.runtime.streams import check


def function(kernel: Any, kinds: tuple, types: Callable[[], tuple]) -> Any:
    """Return the driver's handle of a kernel for arguments of these kinds, compiled unless a file holds it.

    Parameters
    ----------
    kernel : `@cuda.jit` function
    kinds : tuple
        Properties that determine its arguments' types, identified by their `repr`.
    types : callable
        Returns Numba's types of the arguments; called if the kernel must be compiled.

    Raises
    ------
    TypeError
        If the kernel refers to a value that `describe` cannot identify.
    """
    capability = tuple(cuda.get_current_device().compute_capability)
    name, identity = identify(kernel, kinds, capability)

    def make() -> bytes:
        _announce()
        return compiled(kernel, types(), capability)

    return _loaded(kernel_files.kept(name, identity, make))


def keep(kernel: Any, kinds: tuple, types: tuple, capability: tuple[int, ...]) -> None:
    """Compile a kernel to its file, see `function`, unless the file exists or another process makes it."""
    name, identity = identify(kernel, kinds, capability)
    kernel_files.make_unless_begun(name, identity, lambda: compiled(kernel, types, capability))


def _loaded(code: bytes) -> Any:
    """Load machine code for the life of the process, and return the handle of its one kernel."""
    library = check(driver.cuLibraryLoadData(code, None, None, 0, None, None, 0))
    (kernel,) = check(driver.cuLibraryEnumerateKernels(1, library))
    return kernel


@functools.cache
def _announce() -> None:
    notices.warning("compiling GPU kernels, once for this machine and each dtype")


def identify(kernel: Any, kinds: tuple, capability: tuple[int, ...]) -> tuple[str, bytes]:
    """Return the file name of a kernel's form, and the identity that its contents depend on.

    A newer source or version changes only the identity, so that a stale file is replaced.
    """
    lines: list[int] = []
    form = repr((describe(kernel, lines), kinds, capability)).encode()
    function = kernel.py_func
    sources = kernel_files.sources(Path(function.__code__.co_filename))
    stem = f"{function.__module__}.{function.__qualname__.replace('.<locals>', '')}"
    name = f"{stem}-{sha256(form).hexdigest()[:16]}.cubin"
    return name, form + repr((lines, versions())).encode() + sources


@functools.cache
def versions() -> tuple:
    """Return the versions of the compilers of this process and of the driver that runs kernels."""
    packages = numba_cuda.__version__, numba.__version__, llvmlite.__version__, np.__version__
    libraries = nvvm.version(), nvjitlink.version(), check(driver.cuDriverGetVersion())
    return platform.python_version(), *packages, *libraries


def compiled(kernel: Any, types: tuple, capability: tuple[int, ...]) -> bytes:
    """Return a kernel's machine code for arguments of Numba's `types`."""
    # from 9.0 on with architecture-specific instructions
    architecture = (*capability, "a") if capability >= (9, 0) else capability
    options = kernel.targetoptions
    lto = options["lto"]
    code, _ = cuda.compile(
        kernel.py_func,
        types,
        device=False,
        abi="numba",
        cc=architecture,
        output="ltoir" if lto else "ptx",
        launch_bounds=options["launch_bounds"],
    )
    unlinked = ObjectCode.from_ltoir(code) if lto else ObjectCode.from_ptx(code.encode())
    target = "sm_" + "".join(map(str, architecture))
    linker = Linker(
        unlinked, options=LinkerOptions(arch=target, link_time_optimization=lto or None)
    )
    return bytes(linker.link("cubin").code)
