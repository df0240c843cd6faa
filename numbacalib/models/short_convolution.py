"""Configuration of layers that have a short convolution in the place of attention."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ShortConvolution"]


@dataclass(frozen=True)
class ShortConvolution:
    """A gated convolution over a few positions, each channel by itself (Liquid AI's LFM2).

    Attributes
    ----------
    layers : tuple of bool
        Which blocks have it in the place of attention.
    taps : int
        Positions that it sums over.
    """

    layers: tuple[bool, ...]
    taps: int
