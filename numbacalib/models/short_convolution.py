"""Configuration of layers with a short convolution in place of attention."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ShortConvolution"]


@dataclass(frozen=True)
class ShortConvolution:
    """A gated depthwise convolution over a few positions (Liquid AI's LFM2).

    Attributes
    ----------
    layers : tuple of bool
        Blocks that have it in place of attention.
    taps : int
        Positions that it sums over.
    """

    layers: tuple[bool, ...]
    taps: int
