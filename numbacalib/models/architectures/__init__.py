"""The architectures that the forward pass knows, a description each: docs/add-an-architecture.md."""

from numbacalib.models.architectures.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from numbacalib.models.description import Architecture

ARCHITECTURES: dict[str, Architecture] = {
    architecture.model_type: architecture for architecture in (LLAMA, MISTRAL, QWEN2, QWEN3)
}
"""By ``model_type``."""
