"""Places of a model's arrays: the host, or a CUDA device."""

from __future__ import annotations

import functools
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.matrix import cast
from numbacalib.runtime import host_memory
from numbacalib.runtime.notices import notices

if TYPE_CHECKING:
    from numbacalib.runtime.device import Transfers


@dataclass(frozen=True)
class Place:
    """Arrays of a model are put here, and the model runs here.

    Attributes
    ----------
    name : str
        ``"cpu"``, or ``"cuda:N"``.
    batch_tokens : int
        Tokens that go through a layer together: enough for full-speed products, bounded in memory.
    score_rows : int
        Tokens whose scores over a part of the vocabulary are held together.
    held_bytes : int
        Activations of a layer's inputs that are held rather than computed twice.
    """

    name: str
    batch_tokens: int
    score_rows: int
    held_bytes: int

    def put(self, array: NDArray[Any], dtype: Any = None) -> Any:
        """Copy a host array here, C-contiguous, rounded to another float dtype where one is given.

        On the host what needs no change comes back as it is.
        """
        if self.name == "cpu":
            return np.ascontiguousarray(array, dtype)
        from numbacalib.runtime import device

        there = device.from_host(np.ascontiguousarray(array))
        return there if dtype is None else cast(there, dtype)

    def staging(self, size: int) -> NDArray[np.uint8]:
        """Return so many bytes of host memory from which copies come here fastest.

        From a device's a copy goes on while the host does: what is put from there must stay as it is until
        the device was waited for.
        """
        from numbacalib.runtime import device

        return device.pinned(size)

    def transfers(self) -> Transfers:
        """Return the copies between pinned memory and this device that go on beside its work."""
        return _transfers(self.name)

    def give_back(self) -> None:
        """Give back to the system, or a device's driver, what is kept of memory that was freed."""
        if self.name == "cpu":
            host_memory.give_back()
        else:
            from numbacalib.runtime import device

            device.give_back()

    def zeros(self, shape: tuple[int, ...]) -> Any:
        """Return float32 zeros."""
        if self.name == "cpu":
            return np.zeros(shape, np.float32)
        from numbacalib.runtime import device

        return device.zeros(shape, np.float32)

    def free_bytes(self) -> int | None:
        """Memory that is free here, for all that a process may have; None where the system does not say."""
        if self.name != "cpu":
            from numbacalib.runtime import device

            return device.free_bytes()
        limits = [_available(), _left_of_group()]
        return min((limit for limit in limits if limit is not None), default=None)

    def taken_bytes(self) -> int:
        """Bytes of the device that the pool of memory has taken, which keeps them; 0 on the host."""
        if self.name == "cpu":
            return 0
        from numbacalib.runtime import device

        return device.taken_bytes()

    def product_dtype(self, stored: np.dtype) -> np.dtype:
        """Return the dtype of products of a weight that is stored so; their sums are float32.

        The host's BLAS has no 16-bit floats; a device's tensor cores take them as they are.
        """
        if self.name == "cpu" or stored == np.float64:
            return np.dtype(np.float32)
        return stored


def _available() -> int | None:
    """Return what Linux could give to a process without swapping."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return None


def _left_of_group() -> int | None:
    """Return what a container's limit leaves, by cgroup v2."""
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # a limit may be "max"
        limit = int((group / "memory.max").read_text())
        return limit - int((group / "memory.current").read_text())
    return None


HOST = Place("cpu", batch_tokens=4096, score_rows=256, held_bytes=1 << 30)


@functools.cache
def _transfers(name: str) -> Transfers:
    """Return the copies of a device, the current one."""
    from numbacalib.runtime import device

    del name
    return device.Transfers()


def open_place(device: str = "auto") -> Place:
    """Return the place that a name stands for, and make it the current device.

    Parameters
    ----------
    device : str, default "auto"
        ``"cpu"``, ``"cuda"`` (the first device), ``"cuda:N"``, or ``"auto"``: the first CUDA device
        where there is one and the extra `cuda` is installed, else the host.

    Returns
    -------
    Place

    Raises
    ------
    ValueError
        If it is none of these, there is no such device, or its driver is too old.
    ModuleNotFoundError
        If the extra `cuda` is not installed.

    Examples
    --------
    >>> from numbacalib.models import open_place
    >>> open_place("cpu").name
    'cpu'
    """
    if device == "cpu":
        return HOST
    if device == "auto":
        if _missing_packages() or not _device_count():
            return HOST
        if fault := _driver_fault():
            notices.warning("running on the host: expected %s", fault)
            return HOST
        notices.warning("running on the first CUDA device (--device cpu for the host)")
        return _cuda(0)
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number.isdecimal() or device == "cuda"):
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {device!r}")
    if missing := _missing_packages():
        raise ModuleNotFoundError(
            f"device: {device} needs {missing[0]}: pip install 'numbacalib[cuda]'", name=missing[0]
        )
    count = _device_count()
    if not count:
        raise ValueError(f"device: expected a GPU and its driver for {device}, found none")
    if fault := _driver_fault():
        raise ValueError(f"device: expected {fault}")
    if int(number or 0) >= count:
        raise ValueError(f"device: expected cuda:0 to cuda:{count - 1}, got {device}")
    return _cuda(int(number or 0))


def _missing_packages() -> list[str]:
    if find_spec("numba_cuda") is None:
        return ["numba_cuda"]
    from numbacalib.runtime import device

    return device.missing_packages()


def _device_count() -> int:
    """CUDA devices that the driver has; none without a driver that can be used."""
    from numbacalib.runtime.device import cuda

    return len(cuda.gpus) if cuda.is_available() else 0


def _driver_fault() -> str | None:
    """Say which driver is needed, and which there is, where it is too old for the packages; else None."""
    from numbacalib.runtime import device

    version, least = device.driver_versions()
    if version >= least:
        return None
    needed, found = (f"{each // 1000}.{each % 1000 // 10}" for each in (least, version))
    return f"a driver of CUDA {needed} or later, found one of CUDA {found}"


def _cuda(number: int) -> Place:
    from numbacalib.runtime import device

    device.cuda.select_device(number)
    held = device.total_bytes() // 4
    return Place(f"cuda:{number}", batch_tokens=32768, score_rows=8192, held_bytes=held)
