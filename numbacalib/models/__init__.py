"""Checkpoint readers and a torch-free forward pass of decoders.

`open_checkpoint` reads a Hugging Face directory or a GGUF file; `Decoder` runs it on the host or on a
CUDA device (`open_place`), one block in memory at a time.
"""

from numbacalib.models.block import DecoderBlock
from numbacalib.models.checkpoint import Checkpoint, TensorInfo
from numbacalib.models.config import ModelConfig
from numbacalib.models.decoder import Decoder
from numbacalib.models.layer_tensors import EMBEDDINGS
from numbacalib.models.place import HOST, Place, open_place
from numbacalib.models.readers import open_checkpoint

__all__ = [
    "EMBEDDINGS",
    "HOST",
    "Checkpoint",
    "Decoder",
    "DecoderBlock",
    "ModelConfig",
    "Place",
    "TensorInfo",
    "open_checkpoint",
    "open_place",
]
