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
        Experts in a block.
    size : int
        Hidden width of an expert.
    layers : tuple of bool
        Blocks with experts in place of an MLP.
    routing : Routing
    shared_size : int
        Hidden width of the shared MLP, which all tokens go through; 0 for none.
    router_bias : bool
    scales_inputs : bool
        Whether routing weights multiply an expert's inputs instead of its outputs.
    latent_size : int
        Length of the experts' inputs, projected down from states, and of their outputs, projected back up;
        0 for the length of states.
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
        """Length of the experts' inputs and outputs."""
        return self.latent_size or hidden_size
