"""Configuration of Mamba 2 layers in place of attention."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["StateSpace"]


@dataclass(frozen=True)
class StateSpace:
    """Mamba 2: a memory that decays and is written without correction (Dao and Gu 2024, arXiv 2405.21060).

    Attributes
    ----------
    layers : tuple of bool
        Blocks that have it in place of attention.
    heads, groups : int
        Numbers of value heads, and of key and query heads; the first is a multiple of the second.
    head_dim, key_dim : int
        Lengths of these heads.
    taps : int
        Positions that the convolution of values, keys and queries sums over.
    convolution_bias : bool
    """

    layers: tuple[bool, ...]
    heads: int
    groups: int
    head_dim: int
    key_dim: int
    taps: int
    convolution_bias: bool

    @property
    def values(self) -> int:
        """Length of a token's values over all heads."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Length of a token's keys, and of its queries, over all groups."""
        return self.groups * self.key_dim

    @property
    def rows(self) -> int:
        """Rows of the input projection: gates, values, keys, queries and scores."""
        return 2 * (self.values + self.keys) + self.heads
