"""Writers and readers of the checkpoints that runtimes load."""

from numbacalib.formats.compressed_tensors import (
    PackedLayers,
    PackedLayout,
    is_compressed,
    pack,
    unpack,
    weight_reader,
)
from numbacalib.formats.imatrix import read_imatrix, write_imatrix
from numbacalib.formats.output_directory import new_directory
from numbacalib.formats.safetensors_writer import SafetensorsWriter

__all__ = [
    "PackedLayers",
    "PackedLayout",
    "SafetensorsWriter",
    "is_compressed",
    "new_directory",
    "pack",
    "read_imatrix",
    "unpack",
    "weight_reader",
    "write_imatrix",
]
