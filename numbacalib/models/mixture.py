"""Configuration of a mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass

from numbacalib.spec.router import Routing

__all__ = ["Mixture"]


@dataclass(frozen=True)
class Mixture:
    """Experts, of which each token goes through a few.

    Attributes
    ----------
    experts : int
        Of a block.
    size : int
        Width between an expert's layers.
    layers : tuple of bool
        Which blocks have experts in the place of an MLP.
    routing : Routing
    shared_size : int
        Width of the MLP beside them that all tokens go through; 0 for none.
    router_bias : bool
    scales_inputs : bool
        Whether how much an expert counts for a token multiplies its inputs, not its outputs.
    latent_size : int
        Length of the vectors that experts read, and whose sums are projected back; 0 where they read what
        their router does.
    """

    experts: int
    size: int
    layers: tuple[bool, ...]
    routing: Routing
    shared_size: int = 0
    router_bias: bool = False
    scales_inputs: bool = False
    latent_size: int = 0

    def input_size(self, hidden_size: int) -> int:
        """Length of what experts read, and of their outputs."""
        return self.latent_size or hidden_size
