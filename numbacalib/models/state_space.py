"""Configuration of layers of Mamba 2 in the place of attention."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["StateSpace"]


@dataclass(frozen=True)
class StateSpace:
    """A memory that forgets and is never corrected (Dao and Gu (2024), arXiv 2405.21060).

    Attributes
    ----------
    layers : tuple of bool
        Which blocks have it in the place of attention.
    heads, groups : int
        Heads of values, and of keys and queries; the first is a multiple of the second.
    head_dim, key_dim : int
        Their lengths.
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
        """Numbers of a token's values."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Numbers of a token's keys, and of its queries."""
        return self.groups * self.key_dim

    @property
    def rows(self) -> int:
        """Rows of the layer that all of it comes from: gates, values, keys, queries and scores."""
        return 2 * (self.values + self.keys) + self.heads
