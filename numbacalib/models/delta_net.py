"""Configuration of layers that have a memory by the gated delta rule in the place of attention."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DeltaNet"]


@dataclass(frozen=True)
class DeltaNet:
    """Linear attention: see `numbacalib.spec.delta_rule`.

    Attributes
    ----------
    layers : tuple of bool
        Which blocks have it in the place of attention.
    key_heads, value_heads : int
        Heads of queries and keys, and of values; the second is a multiple of the first.
    key_dim, value_dim : int
        Their lengths.
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
        """Numbers of a token's keys, and of its queries."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Numbers of a token's values."""
        return self.value_heads * self.value_dim
