"""Streams: the one that a call runs on, and its order among others.

The values of a CUDA array are produced on a stream of its library. A call runs on that stream, so that it
need not wait and its results are in order for the caller. If the arrays of a call have several streams, it
runs on the first that is not the default one, waits on the device for the others, and makes these wait for
its results. The host never waits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any, NamedTuple

from numba.core import config

from numbacalib.runtime.extras import extra

with extra("cuda"):
    from cuda.bindings import driver

LEGACY, PER_THREAD = 1, 2
"""Handles of the two default streams in the array interface and DLPack."""


class Stream(NamedTuple):
    """A stream of any library."""

    handle: int
    """Handle that the driver takes: 0 is the legacy default stream."""
    owner: Any = None
    """Object that keeps the handle valid, for memory that is freed in the stream's order. A handle that a
    caller gives as a number must be kept valid by the caller."""


DEFAULT = Stream(PER_THREAD if config.CUDA_PER_THREAD_DEFAULT_STREAM else 0)
"""Numba's own default stream."""


class _Call(NamedTuple):
    """Stream and device of an open call."""

    stream: Stream
    device: int


_CURRENT: ContextVar[_Call | None] = ContextVar("call", default=None)


def check(result: tuple) -> Any:
    """Return the value of a driver call, or raise its error."""
    error, *values = result
    if error:
        raise RuntimeError(f"CUDA driver: {error.name}")
    return values[0] if values else None


def current() -> Stream:
    """Return the stream of the open call, or the default one."""
    call = _CURRENT.get()
    return DEFAULT if call is None else call.stream


def device_of_call() -> int | None:
    """Return the number of the open call's device, which is the current one; None if no call is open."""
    call = _CURRENT.get()
    return None if call is None else call.device


def is_open() -> bool:
    """Return whether a call is open; calls inside it run on its stream."""
    return _CURRENT.get() is not None


def stream_of(argument: Any) -> Stream:
    """Return the stream of a caller's ``stream=``: a handle, or an object with ``__cuda_stream__``."""
    handle = argument
    if hasattr(argument, "__cuda_stream__"):
        handle = int(argument.__cuda_stream__()[1])
    if isinstance(handle, bool) or not isinstance(handle, int):
        raise TypeError(f"stream: expected a CUDA stream, got {type(argument).__name__}")
    return _named(handle, getattr(argument, "owner", argument))


def _named(handle: int, owner: Any) -> Stream:
    """Return the stream of a handle of the array interface."""
    if handle == LEGACY:
        return Stream(0)
    return Stream(handle, owner) if handle else DEFAULT


def producer(array: Any, interface: Any) -> Stream | None:
    """Return the stream on which a CUDA array is produced; None if its library does not say.

    `interface` is the CUDA array interface; Numba's arrays need none, since Numba uses the default stream
    unless the array names another.
    """
    if hasattr(array, "__cuda_ndarray__"):
        stream = array.stream
        return stream_of(stream) if stream else DEFAULT
    handle = interface.get("stream")
    if handle is not None:
        cupy = sys.modules.get("cupy")
        if cupy is not None and isinstance(array, cupy.ndarray):
            return _named(handle, cupy.cuda.get_current_stream())
        return _named(handle, None)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return _named(torch.cuda.current_stream(array.device).cuda_stream or LEGACY, None)
    return None


def wait_for_unnamed(array: Any, interface: Any) -> None:
    """Order the current stream after an array whose stream is not known."""
    if interface.get("version", 0) >= 3:
        return  # this version can name a stream, so none means that no wait is needed
    if hasattr(array, "__dlpack__"):
        array.__dlpack__(stream=current().handle or LEGACY)  # the producer makes ours wait
    else:
        check(driver.cuCtxSynchronize())


class Order:
    """Order of a call among streams, from its construction until `leave`.

    Parameters
    ----------
    argument : CUDA stream or None
        The caller's ``stream=``.
    device : int
        Number of the current device.
    producers : iterable of Stream or None
        Of the call's arrays, if known. Without an argument, the call runs on the stream of the enclosing
        call, or else on one of these.
    """

    def __init__(self, argument: Any, device: int, producers: Iterable[Stream | None]) -> None:
        named = {stream.handle: stream for stream in producers if stream is not None}
        stream = current()
        if argument is not None:
            stream = stream_of(argument)
        elif not is_open():
            for handle, other in named.items():
                if handle != DEFAULT.handle:
                    stream = other
                    break
        named.pop(stream.handle, None)
        for handle in named:
            wait(stream.handle, handle)
        # a caller who chose the stream is responsible for the order afterwards
        self._after = () if argument is not None else tuple(named)
        self._token = _CURRENT.set(_Call(stream, device))

    def leave(self) -> None:
        """End the call: later work on its arrays' streams runs after it."""
        handle = current().handle
        _CURRENT.reset(self._token)
        for other in self._after:
            wait(other, handle)


def wait(stream: int, other: int) -> None:
    """Make `stream` wait for all work that `other` has so far."""
    event = check(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))
    check(driver.cuEventRecord(event, driver.CUstream(other)))
    check(driver.cuStreamWaitEvent(driver.CUstream(stream), event, 0))
    check(driver.cuEventDestroy(event))
