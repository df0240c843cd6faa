"""Arrays of all tokens of a text, such as the residual stream, in parts of whole sequences.

They stay where the model runs. Arrays that do not fit on a device are in pinned host memory instead, and
are streamed part by part: while the device works on one part, the next is loaded and the last stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.matrix import copied
from numbacalib.runtime.backend import arrays_of_one_device

if TYPE_CHECKING:
    from numbacalib.models.place import Place

__all__ = ["Parts", "StreamedParts"]


class Parts:
    """Arrays ``[S, T, K]`` where the model runs; iterate to read them.

    Attributes
    ----------
    stay : bool
        False if the arrays are on the device only while they are iterated over.
    """

    stay = True

    def __init__(self, arrays: Iterable[Any] = ()) -> None:
        self._arrays = list(arrays)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._arrays)

    def changed(self) -> Iterator[Any]:
        """Iterate to change each array in place, before the next one is requested."""
        return iter(self._arrays)

    def append(self, array: Any) -> None:
        """Add a part."""
        self._arrays.append(array)

    def first(self, tokens: int) -> Parts:
        """Return the first parts that have at least so many tokens, in the same memory."""
        return Parts(self._first(tokens))

    def _first(self, tokens: int) -> Iterator[Any]:
        for array in self._arrays:
            if tokens <= 0:
                return
            tokens -= array.shape[0] * array.shape[1]
            yield array

    def copied(self) -> Parts:
        """Return copies."""
        return Parts(map(copied, self._arrays))

    def others(self) -> Parts:
        """Return an empty collection of the same kind, for other arrays of the same tokens."""
        return Parts()

    @property
    def tokens(self) -> int:
        """Tokens in all parts."""
        return sum(array.shape[0] * array.shape[1] for array in self._arrays)


class StreamedParts(Parts):
    """Arrays ``[S, T, K]`` in pinned memory, streamed to a device one after another.

    At most four are on the device: the next, the current, the last on its way back, and one that the caller
    may still hold.

    Parameters
    ----------
    place : Place
        The device.
    arrays : iterable of arrays of `Place.staging`
    """

    stay = False

    def __init__(self, place: Place, arrays: Iterable[NDArray[Any]] = ()) -> None:
        super().__init__(arrays)
        self._place = place

    def __iter__(self) -> Iterator[Any]:
        return self._passing(back=False)

    def changed(self) -> Iterator[Any]:
        """See `Parts.changed`."""
        return self._passing(back=True)

    def _passing(self, *, back: bool) -> Iterator[Any]:
        transfers = self._place.transfers()
        transfers.begin()
        arrays = iter(self._arrays)
        host = next(arrays, None)
        coming = None if host is None else transfers.load(host)
        leaving = None
        try:
            while host is not None:
                here, following = coming, next(arrays, None)
                transfers.arrive()
                coming = None if following is None else transfers.load(following)
                yield here
                if back:
                    transfers.returned()  # after the last store, its memory may be reused
                    transfers.store(here, host)
                    leaving = here
                host = following
        finally:  # transfers must end before their memory is reused
            transfers.arrive()
            transfers.returned()
            del coming, leaving

    def append(self, array: Any) -> None:
        """Add a part, copied to pinned memory."""
        with arrays_of_one_device(array=array) as (given,):
            host = self._staged(given.shape, given.dtype)
            transfers = self._place.transfers()
            transfers.store(given, host)
            transfers.returned()
        self._arrays.append(host)

    def first(self, tokens: int) -> StreamedParts:
        """See `Parts.first`."""
        return StreamedParts(self._place, self._first(tokens))

    def copied(self) -> StreamedParts:
        """Return copies in pinned memory."""
        self._place.transfers().settle()
        twins = [self._staged(array.shape, array.dtype) for array in self._arrays]
        for twin, array in zip(twins, self._arrays, strict=True):
            np.copyto(twin, array)
        return StreamedParts(self._place, twins)

    def others(self) -> StreamedParts:
        """See `Parts.others`."""
        return StreamedParts(self._place)

    def _staged(self, shape: tuple[int, ...], dtype: np.dtype) -> NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self._place.staging(size).view(dtype).reshape(shape)
