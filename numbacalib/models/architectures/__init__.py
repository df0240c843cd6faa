"""The architectures that the forward pass knows, a description each: docs/add-an-architecture.md."""

from numbacalib.models.architectures import (
    gemma,
    hybrid,
    latent,
    llama,
    llama4,
    mixtures,
    older,
    phi,
    relatives,
    sparse,
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
        older,
        llama4,
        hybrid,
        sparse,
    )
    for architecture in vars(module).values()
    if isinstance(architecture, Architecture)
}
"""By ``model_type``."""
