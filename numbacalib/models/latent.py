"""Configuration of multi-head latent attention."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NORM_EPS", "Latent"]

NORM_EPS = 1e-6
"""Added to the mean square in the norms of latents, whatever a file says of the others: as transformers."""


@dataclass(frozen=True)
class Latent:
    """Keys and values that come from one short vector of a token, and queries that may come from another.

    DeepSeek-AI (2024), arXiv 2405.04434, section 2.1. A head of keys is a part of its own, which does not
    turn, and after it one that turns and that all heads share; ``head_dim`` is the length of both.

    Attributes
    ----------
    size : int
        Of the vector that keys and values come from.
    query_size : int
        Of the vector that queries come from; 0 where they come from the block's input itself.
    value_dim : int
        Length of a head of values.
    """

    size: int
    query_size: int
    value_dim: int
