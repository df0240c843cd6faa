"""Places for a model's arrays: the host, or a CUDA device."""

from __future__ import annotations

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
    """The host or a device, which holds a model's arrays and runs it.

    Attributes
    ----------
    name : str
        ``"cpu"``, or ``"cuda:N"``.
    batch_tokens : int
        Tokens that go through a layer together: enough for full-speed products, bounded in memory.
    score_rows : int
        Tokens whose logits over a tile of the vocabulary are held together.
    held_bytes : int
        Limit of a layer's input activations that are held instead of computed twice.
    """

    name: str
    batch_tokens: int
    score_rows: int
    held_bytes: int

    def put(self, array: NDArray[Any], dtype: Any = None) -> Any:
        """Copy a host array here, C-contiguous, rounded to another float dtype if one is given.

        On the host an array that needs no change is returned itself.
        """
        if self.name == "cpu":
            return np.ascontiguousarray(array, dtype)
        from numbacalib.runtime import device

        there = device.from_host(np.ascontiguousarray(array))
        return there if dtype is None else cast(there, dtype)

    def staging(self, size: int) -> NDArray[np.uint8]:
        """Return so many bytes of host memory from which copies to this place are fastest.

        For a device it is pinned, and copies from it are asynchronous: their source must not change until
        the device has been synchronized.
        """
        from numbacalib.runtime import device

        return device.pinned(size)

    def transfers(self) -> Transfers:
        """Return the asynchronous transfers between pinned memory and this device."""
        if self.name not in _TRANSFERS:
            from numbacalib.runtime import device

            _TRANSFERS[self.name] = device.Transfers()
        return _TRANSFERS[self.name]

    def give_back(self) -> None:
        """Return cached free memory to the system, or to a device's driver."""
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
        """Free memory here, within the process's limits; None if the system does not tell."""
        if self.name != "cpu":
            from numbacalib.runtime import device

            return device.free_bytes()
        limits = [_available(), _left_of_group()]
        return min((limit for limit in limits if limit is not None), default=None)

    def taken_bytes(self) -> int:
        """Bytes of the device that the memory pool holds; 0 on the host."""
        if self.name == "cpu":
            return 0
        from numbacalib.runtime import device

        return device.taken_bytes()

    def product_dtype(self, stored: np.dtype) -> np.dtype:
        """Return the dtype of products for weights stored in a dtype; their sums are float32.

        The host computes 16-bit weights in float32; a device's tensor cores take them directly.
        """
        if self.name == "cpu" or stored == np.float64:
            return np.dtype(np.float32)
        return stored


def _available() -> int | None:
    """Return the memory that Linux can give to a process without swapping; None elsewhere."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return None


def _left_of_group() -> int | None:
    """Return the memory left within a container's limit (cgroup v2); None without one."""
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # a limit may be "max"
        limit = int((group / "memory.max").read_text())
        return limit - int((group / "memory.current").read_text())
    return None


HOST = Place("cpu", batch_tokens=4096, score_rows=256, held_bytes=1 << 30)


_TRANSFERS: dict[str, Transfers] = {}
"""Transfers of the devices that were used, by the names of their places."""


def open_place(device: str = "auto") -> Place:
    """Return the place of this name, and make it the current device.

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
        If the name is none of these, there is no such device, or its driver is too old.
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
    """Return the number of CUDA devices; 0 without a usable driver."""
    from numbacalib.runtime.device import cuda

    return len(cuda.gpus) if cuda.is_available() else 0


def _driver_fault() -> str | None:
    """Name the needed and the found driver if the latter is too old for the packages; else None."""
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
