"""Prefetching of the next tensors by threads while a device works."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.place import Place

__all__ = ["ReadAhead"]

THREADS = 4
"""Tensors that are copied at once: one thread copies slower than the bus to a device."""


class ReadAhead:
    """Reader of tensors by name: immediately, or ahead of use for a device.

    Tensors read ahead lie in pinned buffers, which hold one block and are reused: a tensor must be on the
    device before the next block is read ahead. For the host nothing is read ahead: its threads are busy.

    Parameters
    ----------
    read : callable
        From a tensor's name to its values.
    place : Place
        The place that the values are for.
    """

    def __init__(self, read: Callable[[str], NDArray[Any]], place: Place) -> None:
        self._read = read
        self._place = place
        self._pending: dict[str, Future[NDArray[Any]]] = {}
        self._buffers: dict[int, NDArray[np.uint8]] = {}
        self._threads: ThreadPoolExecutor | None = None

    def start(self, names: Iterable[str]) -> None:
        """Begin to read tensors; earlier reads that were not used are dropped."""
        if self._place.name == "cpu":
            return
        self._threads = self._threads or ThreadPoolExecutor(THREADS, "read-ahead")
        wait([future for future in self._pending.values() if not future.cancel()])  # for its buffer
        self._pending = {
            name: self._threads.submit(self._staged, name, number)
            for number, name in enumerate(names)
        }

    def __call__(self, name: str) -> NDArray[Any]:
        """Return a tensor, or raise the error of its read."""
        future = self._pending.pop(name, None)
        return self._read(name) if future is None else future.result()

    def _staged(self, name: str, number: int) -> NDArray[Any]:
        """Read a tensor into the buffer of this number."""
        tensor = self._read(name)
        buffer = self._buffers.get(number)
        if buffer is None or len(buffer) < tensor.nbytes:
            buffer = self._buffers[number] = self._place.staging(tensor.nbytes)
        staged = buffer[: tensor.nbytes].view(tensor.dtype).reshape(tensor.shape)
        np.copyto(staged, tensor)
        return staged
