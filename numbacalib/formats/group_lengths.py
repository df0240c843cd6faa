"""Lengths of the groups of channels that share a scale, where the one asked for does not divide K."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

SHORTEST = 16
"""Channels of the shortest group that is taken without having been asked for."""


def group_lengths(
    channels: Mapping[str, int], asked: int | None, *, uniform: bool
) -> dict[str, int | None]:
    """Return the length of each layer's groups: the longest up to `asked` that divides its K.

    Parameters
    ----------
    channels : mapping of str to int
        K of each layer.
    asked : int or None
        None is one scale a row, in every layer.
    uniform : bool
        Whether the file holds one length: then it divides every K.

    Raises
    ------
    ValueError
        If `asked` does not divide, and only lengths below `SHORTEST` do: says what to use instead.
    """
    if asked is None:
        return dict.fromkeys(channels)
    # a length divides every K where it divides their greatest common divisor
    common = math.gcd(*channels.values())
    lengths = {K: _longest(common if uniform else K, asked) for K in channels.values()}
    for K, length in lengths.items():
        if length < min(asked, SHORTEST):
            longer = _divisors(common if uniform else K, max(asked + 1, SHORTEST))
            use = [*map(str, longer[:1]), "none (one scale a row)"]
            if uniform and len(lengths) > 1:
                use.append("the symmetric grid, which takes a length a layer")
            raise ValueError(
                f"group_size: {asked} does not divide K = {listed(lengths if uniform else [K])}, and "
                f"{length}, the longest below it that does, is under {SHORTEST}: use {' or '.join(use)}"
            )
    return {layer: lengths[K] for layer, K in channels.items()}


def listed(numbers: Iterable[int]) -> str:
    """Numbers of a sentence, each once, in their order."""
    return ", ".join(map(str, sorted(set(numbers))))


def _longest(divided: int, asked: int) -> int:
    return max(size for size in _divisors(divided) if size <= asked)


def _divisors(number: int, least: int = 1) -> list[int]:
    return [size for size in range(least, number + 1) if number % size == 0]
