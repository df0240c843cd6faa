"""Checkpoint readers and a torch-free forward pass of the Llama family.

`open_checkpoint` reads a Hugging Face directory or a GGUF file; `Decoder` runs it in NumPy, one
block in memory at a time.
"""

from numbacalib.models.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from numbacalib.models.config import ModelConfig
from numbacalib.models.llama import EMBEDDINGS, Decoder, DecoderBlock

__all__ = [
    "EMBEDDINGS",
    "Checkpoint",
    "Decoder",
    "DecoderBlock",
    "ModelConfig",
    "TensorInfo",
    "open_checkpoint",
]
