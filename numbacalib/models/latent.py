"""Configuration of multi-head latent attention."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NORM_EPS", "Latent"]

NORM_EPS = 1e-6
"""Epsilon in the norms of latents, whatever a file says for the other norms, as in transformers."""


@dataclass(frozen=True)
class Latent:
    """Keys and values projected from one short latent vector of a token, and queries perhaps from another.

    DeepSeek-AI (2024), arXiv 2405.04434, section 2.1. A key head is its own part without rotary embedding,
    then a rotated part that all heads share; ``head_dim`` is the length of both together.

    Attributes
    ----------
    size : int
        Length of the latent vector of keys and values.
    query_size : int
        Length of the latent vector of queries; 0 if they are projected from the block's input.
    value_dim : int
        Length of a value head.
    """

    size: int
    query_size: int
    value_dim: int
