"""Checkpoint readers and a torch-free forward pass of the Llama family.

`open_checkpoint` reads a Hugging Face directory or a GGUF file; `Decoder` runs it in NumPy, one
block in memory at a time.
"""

from .checkpoint import Checkpoint, TensorInfo, open_checkpoint
from .config import ModelConfig
from .llama import Decoder, DecoderBlock

__all__ = [
    "Checkpoint",
    "Decoder",
    "DecoderBlock",
    "ModelConfig",
    "TensorInfo",
    "open_checkpoint",
]
