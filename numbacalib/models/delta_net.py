"""Configuration of layers with a gated delta net in place of attention."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DeltaNet"]


@dataclass(frozen=True)
class DeltaNet:
    """Linear attention: see `numbacalib.spec.delta_rule`.

    Attributes
    ----------
    layers : tuple of bool
        Blocks that have it in place of attention.
    key_heads, value_heads : int
        Numbers of query and key heads, and of value heads; the second is a multiple of the first.
    key_dim, value_dim : int
        Lengths of these heads.
    taps : int
        Positions that the convolution of queries, keys and values sums over.
    """

    layers: tuple[bool, ...]
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int

    @property
    def keys(self) -> int:
        """Length of a token's keys, and of its queries, over all heads."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Length of a token's values over all heads."""
        return self.value_heads * self.value_dim
