"""Writers and readers of the checkpoints that runtimes load.

`Format` defines one; `FORMATS` has those of whole language models by name.
"""

from numbacalib.formats.dequantized import dequantized
from numbacalib.formats.format import Format, GridRules, LayerGrid, ModelWriter, StoredLayers
from numbacalib.formats.imatrix import read_imatrix, write_imatrix
from numbacalib.formats.output_directory import new_directory
from numbacalib.formats.registry import FORMATS, common_grids, formats_named, stored_format
from numbacalib.formats.safetensors_writer import SafetensorsWriter

__all__ = [
    "FORMATS",
    "Format",
    "GridRules",
    "LayerGrid",
    "ModelWriter",
    "SafetensorsWriter",
    "StoredLayers",
    "common_grids",
    "dequantized",
    "formats_named",
    "new_directory",
    "read_imatrix",
    "stored_format",
    "write_imatrix",
]
