"""CUDA arrays of any library and their memory, through the driver; see `numbacalib.runtime.device`."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numba import cuda
from numpy.typing import DTypeLike, NDArray

from numbacalib.runtime import streams
from numbacalib.runtime.array import CUDA_DLPACK, DeviceArray
from numbacalib.runtime.extras import extra
from numbacalib.runtime.half import bfloat16, is_bfloat16
from numbacalib.runtime.memory import Memory, has_cupy, room
from numbacalib.runtime.streams import check

with extra("cuda"):
    from cuda.bindings import driver
    from numba.cuda.cudadrv.devicearray import DeviceNDArray
    from numba.cuda.cudadrv.driver import MemoryPointer

HAS_PTX = True
"""True if inline assembly and tensor cores may be available."""


class Result(DeviceNDArray):
    """Device array for callers: Numba's, which other libraries also read through DLPack.

    Its values are produced on its `stream`. The CUDA array interface has no name for bfloat16, which
    libraries read only through DLPack.
    """

    taken: DeviceArray | None = None
    """The same array in the form that kernels take, once it is known."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if is_bfloat16(self.dtype):
            raise AttributeError("the CUDA array interface has no bfloat16: use DLPack")
        interface: dict[str, Any] = super().__cuda_array_interface__
        return interface

    def __dlpack__(self, **options: Any) -> Any:
        """Return a capsule and let the consumer's stream wait for the array's; needs CuPy."""
        from cupy import ndarray
        from cupy.cuda import Device, MemoryPointer, Stream, UnownedMemory

        number = _number_of_device(self)
        memory = UnownedMemory(_address(self), self.alloc_size, self, number)
        with Device(number), Stream.from_external(self.stream or cuda.default_stream()):
            array = ndarray(self.shape, self.dtype, MemoryPointer(memory, 0), self.strides)
            return array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA_DLPACK, _number_of_device(self)


class open_call:  # noqa: N801 - used like a function
    """Take the CUDA arrays of a call, by name, and order the call among streams until `close`.

    `interfaces` are their CUDA array interfaces, passed in because some libraries make them slowly.

    Attributes
    ----------
    arrays : tuple
        In the form that kernels take; None stays None.

    Raises
    ------
    TypeError
        If they are on several GPUs, or one has a mask.
    """

    def __init__(self, stream: Any, arrays: dict[str, Any], interfaces: dict[str, Any]) -> None:
        self._order: streams.Order | None = None
        self._device: Any = None
        here = None if stream is not None else _taken_here(arrays.values())
        if here is not None:  # as in most calls between methods and ops
            self.arrays = here
            return
        given = {n: (array, interfaces[n]) for n, array in arrays.items() if array is not None}
        first = current_device()  # a new thread has no context yet
        number = _device_of(given) if device_count() > 1 else first
        if number != first:
            of_arrays = cuda.gpus[number]
            of_arrays.__enter__()
            self._device = of_arrays
        try:
            made_on = {name: _producer(*found) for name, found in given.items()}
            used_on = [memory.stream for array, _ in given.values() if (memory := _memory(array))]
            self._order = streams.Order(stream, number, [*made_on.values(), *used_on])
            taken = {name: _taken(name, *given[name], made_on[name]) for name in given}
            self.arrays = tuple([taken.get(name) for name in arrays])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the call."""
        if self._order:
            self._order.leave()
        if self._device:
            self._device.__exit__(None, None, None)


def _memory(array: Any) -> Memory | None:
    """Return the `Memory` that holds an array; None if the array is not ours."""
    owner = array.owner if type(array) is DeviceArray else array
    if isinstance(owner, Result):
        owner = owner.gpu_data.owner
    return owner if isinstance(owner, Memory) else None


def _as_kernels_take(array: Any) -> DeviceArray | None:
    """Return one of our arrays in the form that kernels take; None for others, and for None."""
    if type(array) is DeviceArray:
        return array
    if not isinstance(array, Result):
        return None
    memory = _memory(array)
    if array.taken is None and memory:  # a slice of another array, or a reshaped one
        array.taken = DeviceArray(_address(array), array.shape, array.dtype, memory, array.strides)
    return array.taken


def _taken_here(arrays: Iterable[Any]) -> tuple | None:
    """Return arrays in the form that kernels take if all are ours and on the open call's stream."""
    number = streams.device_of_call()
    if number is None:
        return None
    handle = stream_handle()
    found = []
    for array in arrays:
        taken = array if type(array) is DeviceArray else _as_kernels_take(array)
        if taken is not None:
            memory = taken.owner if type(taken.owner) is Memory else _memory(taken)
            if memory and (memory.stream.handle != handle or memory.device != number):
                return None
        elif array is not None:
            return None
        found.append(taken)
    return tuple(found)


def _producer(array: Any, interface: Any) -> streams.Stream | None:
    """Return the stream on which an array was produced, if known: some libraries are slow to query."""
    return None if type(array) is DeviceArray else streams.producer(array, interface)


def _device_of(arrays: dict[str, tuple[Any, Any]]) -> int:
    """Return the number of the GPU of the arrays, each given with its interface."""
    numbers = {name: _number_of_device(*found) for name, found in arrays.items()}
    if len(set(numbers.values())) > 1:
        found = ", ".join(f"{name} on GPU {number}" for name, number in numbers.items())
        raise TypeError(f"expected all arrays of one call on one device, got {found}")
    return next(iter(numbers.values()), current_device())


def _number_of_device(array: Any, interface: Any = None) -> int:
    """Return the number of the GPU that an array is on: from its library, else from its address."""
    if memory := _memory(array):
        return memory.device
    if type(array) is DeviceArray and hasattr(array.owner, "__dlpack_device__"):
        array = array.owner
    if hasattr(array, "__dlpack_device__") and not isinstance(array, Result):
        return int(array.__dlpack_device__()[1])
    start = _address(array, interface)
    if not start:  # an empty array has no memory
        return current_device()
    from cuda.bindings import runtime

    # the driver's own query, cuPointerGetAttribute, has 0 for every ordinal in cuda.bindings 13.0
    return int(check(runtime.cudaPointerGetAttributes(start)).device)


def _address(array: Any, interface: Any = None) -> int:
    """Address of an array's first element."""
    if type(array) is DeviceArray:
        return array.address
    if hasattr(array, "__cuda_ndarray__"):
        return array.device_ctypes_pointer.value or 0
    return interface["data"][0] or 0


def _taken(name: str, array: Any, interface: Any, made_on: streams.Stream | None) -> DeviceArray:
    """Return a CUDA array as a `DeviceArray` over the same memory, ordered on the current stream."""
    if memory := _memory(array):
        memory.move(streams.current())
    if type(array) is DeviceArray:
        return array
    if hasattr(array, "__cuda_ndarray__"):
        return DeviceArray(_address(array), array.shape, array.dtype, array, array.strides)
    if interface.get("mask") is not None:
        raise TypeError(f"{name}: expected a CUDA array without a mask")
    if made_on is None:
        streams.wait_for_unnamed(array, interface)
    dtype = np.dtype(interface["typestr"])
    if dtype.kind == "V" and str(getattr(array, "dtype", None)).endswith("bfloat16"):
        dtype = bfloat16()  # the interface has no name for it
    shape, strides = tuple(interface["shape"]), interface.get("strides")
    address, read_only = interface["data"]
    return DeviceArray(address or 0, shape, dtype, array, strides, writable=not read_only)


def result(array: Any) -> Any:
    """Return an array for the caller: the Numba device array that it was made of, or a new one."""
    owner = array.owner
    if hasattr(owner, "__cuda_ndarray__") and owner.dtype == array.dtype:
        where = _address(owner), owner.shape, owner.strides
        if where == (array.address, array.shape, array.strides):
            if isinstance(owner, Result):
                owner.stream = current_stream()
            return owner
    return numba_array(array)


def numba_array(array: DeviceArray) -> Any:
    """Return a Numba device array over the same memory."""
    pointer = driver.CUdeviceptr(array.address)
    size = array.size * array.dtype.itemsize
    memory = MemoryPointer(_context(current_device()), pointer, size, owner=array.owner)
    stream = current_stream()
    made = Result(array.shape, array.strides, array.dtype, stream=stream, gpu_data=memory)
    made.taken = array
    return made


@functools.cache
def _context(number: int) -> Any:
    """Return Numba's context of the current device, which is device `number`; cached since it is slow."""
    del number
    return cuda.current_context()


@functools.cache
def device_count() -> int:
    """Return the number of GPUs that this process sees."""
    return int(check(driver.cuDeviceGetCount()))


@functools.cache
def capability(number: int) -> tuple[int, int]:
    """Compute capability of the current device, which is device `number`."""
    del number
    major, minor = cuda.get_current_device().compute_capability
    return major, minor


def has_libraries() -> bool:
    """Return whether CuPy, which provides cuBLAS and cuSOLVER, is installed."""
    return has_cupy()


def missing_packages() -> list[str]:
    """Return the packages that whole models need on a device and that are not installed."""
    return [] if has_cupy() else ["cupy"]


def driver_versions() -> tuple[int, int]:
    """Return the driver's version of CUDA, as 1000 * major + 10 * minor, and the least that packages need.

    Packages run on every driver of the major version that they were built for.
    """
    from cupy.cuda import runtime

    return int(check(driver.cuDriverGetVersion())), runtime.runtimeGetVersion() // 1000 * 1000


def free_bytes() -> int | None:
    """Return the free bytes of the current device, within the limit of CuPy's pool."""
    return room().free


def total_bytes() -> int:
    """Return the total bytes of the current device, within the limit of CuPy's pool."""
    return room().total


def in_kernels(function: Any) -> Any:
    """Return the form of a `spec` function, compiled for the CPU, that kernels call with arrays."""
    return function


def current_device() -> int:
    """Return the number of the current device."""
    number = streams.device_of_call()
    if number is None:
        error, number = driver.cuCtxGetDevice()
        number = cuda.current_context().device.id if error else int(number)
    return number


def current_stream() -> Any:
    """Return the Numba stream on which to launch, 0 for the default one."""
    handle, owner = streams.current()
    if not handle:
        return 0
    stream = cuda.external_stream(handle)
    stream.owner = owner  # results refer to the stream, and so keep it alive
    return stream


def stream_handle() -> int:
    """Return the handle of the stream on which to launch, 0 for the legacy default one."""
    return streams.current().handle


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    """Return an uninitialised C-contiguous device array.

    Its memory is for work of the current stream, and freed once nothing refers to it. Neither waits for the
    device.

    Raises
    ------
    MemoryError
        If so much memory is not free; it names the free bytes.
    """
    dtype = np.dtype(dtype)
    size = max(1, math.prod(shape) * dtype.itemsize)
    memory = Memory(size, current_device(), streams.current())
    return DeviceArray(memory.pointer, shape, dtype, memory)


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    """Return a C-contiguous device array of zeros."""
    array = empty(shape, dtype)
    size = array.size * array.dtype.itemsize
    check(driver.cuMemsetD8Async(array.address, 0, size, driver.CUstream(stream_handle())))
    return array


def from_host(array: NDArray) -> Any:
    """Copy a C-contiguous NumPy array to the device."""
    copy = empty(array.shape, array.dtype)
    write(copy, array)
    return copy


def constant(values: tuple[float, ...], dtype: DTypeLike = np.int64) -> Any:
    """Return constant numbers on the device, which kernels of any stream may read."""
    return _constant(current_device(), values, np.dtype(dtype))


@functools.lru_cache(maxsize=1024)
def _constant(number: int, values: tuple[float, ...], dtype: np.dtype) -> DeviceArray:
    del number
    words = cuda.to_device(np.array(values, dtype))  # the copy is complete on return
    pointer = words.device_ctypes_pointer.value or 0
    return DeviceArray(pointer, words.shape, words.dtype, words)


def write(target: Any, array: NDArray) -> None:
    """Copy a C-contiguous NumPy array into a contiguous device array."""
    # the driver has read pageable memory when this returns
    source = array.ctypes.data, array.nbytes, driver.CUstream(stream_handle())
    check(driver.cuMemcpyHtoDAsync(target.address, *source))


def pinned(size: int) -> NDArray[np.uint8]:
    """Return uninitialized pinned host memory, which the device reads directly: `write` does not wait."""
    if not size:
        return np.empty(size, np.uint8)
    current_device()  # a new thread has no context yet
    return cuda.pinned_array(size, np.uint8)


def copy(source: Any, target: Any) -> None:
    """Copy a contiguous device array into another."""
    size = source.size * source.dtype.itemsize
    stream = driver.CUstream(stream_handle())
    check(driver.cuMemcpyDtoDAsync(target.address, source.address, size, stream))


def read(array: Any) -> NDArray:
    """Copy a contiguous device array to the host, after the work of the current stream."""
    host = np.empty(array.shape, array.dtype)
    stream = driver.CUstream(stream_handle())
    check(driver.cuMemcpyDtoHAsync(host.ctypes.data, array.address, host.nbytes, stream))
    check(driver.cuStreamSynchronize(stream))
    return host


def address(array: Any) -> int:
    """Address of a device array's first element."""
    return int(array.address)
