"""Streams: which one a call runs on, and what it is ordered after.

The values of a CUDA array come to be on a stream of their producer's. A call runs on that stream, so
that it needs to wait for nothing and its results are in order for whoever asked for them. Where the
arrays of a call have several, it runs on the first that is not the default one, waits on the device for
the others, and makes these wait for what it did. The host waits for none of it.
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
"""Handles that the array interface and DLPack have for the two default streams."""


class Stream(NamedTuple):
    """A stream of any library."""

    handle: int
    """Handle that the driver takes: 0 is the legacy default stream."""
    owner: Any = None
    """Object that keeps the handle valid, as memory that goes back in the stream's order needs it. A handle
    that a caller gives as a number is the caller's to keep."""


DEFAULT = Stream(PER_THREAD if config.CUDA_PER_THREAD_DEFAULT_STREAM else 0)
"""Numba's own default stream."""


class _Call(NamedTuple):
    """Open call: where it runs."""

    stream: Stream
    device: int


_CURRENT: ContextVar[_Call | None] = ContextVar("call", default=None)


def check(result: tuple) -> Any:
    """Return the value of a driver call, or raise what it failed with."""
    error, *values = result
    if error:
        raise RuntimeError(f"CUDA driver: {error.name}")
    return values[0] if values else None


def current() -> Stream:
    """Return the stream of the open call, or the default one."""
    call = _CURRENT.get()
    return DEFAULT if call is None else call.stream


def device_of_call() -> int | None:
    """Return the number of the open call's device, which is the current one; None where none is open."""
    call = _CURRENT.get()
    return None if call is None else call.device


def is_open() -> bool:
    """Return whether a call is open, on whose stream its own calls run."""
    return _CURRENT.get() is not None


def stream_of(argument: Any) -> Stream:
    """Return what a caller gave as ``stream=``: a handle, or an object with ``__cuda_stream__``."""
    handle = argument
    if hasattr(argument, "__cuda_stream__"):
        handle = int(argument.__cuda_stream__()[1])
    if isinstance(handle, bool) or not isinstance(handle, int):
        raise TypeError(f"stream: expected a CUDA stream, got {type(argument).__name__}")
    return _named(handle, getattr(argument, "owner", argument))


def _named(handle: int, owner: Any) -> Stream:
    """Return the stream of a handle as the array interface has it."""
    if handle == LEGACY:
        return Stream(0)
    return Stream(handle, owner) if handle else DEFAULT


def producer(array: Any, interface: Any) -> Stream | None:
    """Return the stream on which a CUDA array comes to be; None where its library does not say.

    `interface` is the CUDA array interface; Numba's arrays need none, their library runs on the default
    stream unless they name another.
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
        return  # an interface that could name a stream says that there is nothing to wait for
    if hasattr(array, "__dlpack__"):
        array.__dlpack__(stream=current().handle or LEGACY)  # the producer makes ours wait
    else:
        check(driver.cuCtxSynchronize())


class Order:
    """A call's place among streams, from when it is made until `leave`.

    Parameters
    ----------
    argument : CUDA stream or None
        What the caller gave as ``stream=``.
    device : int
        Number of the current device.
    producers : iterable of Stream or None
        Of the call's arrays, as far as they are known. Without an argument, the call runs on the stream
        of the enclosing call, or else on one of these.
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
        # whoever chose the stream orders what comes after
        self._after = () if argument is not None else tuple(named)
        self._token = _CURRENT.set(_Call(stream, device))

    def leave(self) -> None:
        """End the call: what its arrays' streams are given from now on comes after it."""
        handle = current().handle
        _CURRENT.reset(self._token)
        for other in self._after:
            wait(other, handle)


def wait(stream: int, other: int) -> None:
    """Have a stream wait for what another has been given so far."""
    event = check(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))
    check(driver.cuEventRecord(event, driver.CUstream(other)))
    check(driver.cuStreamWaitEvent(driver.CUstream(stream), event, 0))
    check(driver.cuEventDestroy(event))
