"""Lengths of the groups of channels that share a scale, if the requested one does not divide K."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

SHORTEST = 16
"""Shortest group length that is used without being requested."""


def group_lengths(
    channels: Mapping[str, int],
    asked: int | None,
    *,
    uniform: bool,
    allowed: Collection[int] | None = None,
    whole_rows: bool = True,
) -> dict[str, int | None]:
    """Return the length of each layer's groups: the longest up to `asked` that divides its K.

    Parameters
    ----------
    channels : mapping of str to int
        K of each layer.
    asked : int or None
        None is one scale per row, in every layer.
    uniform : bool
        True if the file holds only one length, which must divide every K.
    allowed : collection of int, optional
        Lengths that the file can hold; all by default.
    whole_rows : bool, default True
        True if the file can hold one scale per row, which an error then suggests.

    Raises
    ------
    ValueError
        If `asked` does not divide K, and only lengths below `SHORTEST` do, or none that is allowed; it
        names alternatives.
    """
    if asked is None:
        return dict.fromkeys(channels)
    # a length divides every K if it divides their greatest common divisor
    common = math.gcd(*channels.values())
    fitting = {K: _divisors(common if uniform else K, allowed) for K in channels.values()}
    lengths = {K: max((n for n in sizes if n <= asked), default=0) for K, sizes in fitting.items()}
    for K, length in lengths.items():
        if length < min(asked, SHORTEST):
            longer = [size for size in fitting[K] if size >= max(asked + 1, SHORTEST)]
            use = [*map(str, longer[:1]), *(["none (one scale a row)"] if whole_rows else ())]
            if uniform and len(lengths) > 1 and not allowed:
                use.append("the symmetric grid, which allows a length per layer")
            below = f"{length}, the longest below it that does, is under {SHORTEST}"
            if not length:
                below = f"no shorter one of {listed(allowed or ())} does"
            raise ValueError(
                f"group_size: {asked} does not divide K = {listed(lengths if uniform else [K])}, and "
                f"{below}: use {' or '.join(use) or 'another format'}"
            )
    return {layer: lengths[K] for layer, K in channels.items()}


def listed(numbers: Iterable[int]) -> str:
    """Join numbers for a message, each once, in ascending order."""
    return ", ".join(map(str, sorted(set(numbers))))


def _divisors(number: int, allowed: Collection[int] | None) -> list[int]:
    """Allowed divisors of a number in ascending order."""
    return [size for size in sorted(allowed or range(1, number + 1)) if number % size == 0]
