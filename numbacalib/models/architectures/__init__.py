"""Descriptions of the supported architectures, one each: see docs/add-an-architecture.md."""

from numbacalib.models.architectures import (
    convolutional,
    gemma,
    hybrid,
    latent,
    latent_relatives,
    llama,
    llama4,
    mixtures,
    older,
    phi,
    relatives,
    shared,
    sparse,
    state_spaces,
    windowed,
)
from numbacalib.models.description import Architecture

ARCHITECTURES: dict[str, Architecture] = {
    architecture.model_type: architecture
    for module in (
        llama,
        windowed,
        relatives,
        gemma,
        phi,
        mixtures,
        latent,
        latent_relatives,
        older,
        llama4,
        hybrid,
        sparse,
        shared,
        state_spaces,
        convolutional,
    )
    for architecture in vars(module).values()
    if isinstance(architecture, Architecture)
}
"""Architectures by ``model_type``."""
