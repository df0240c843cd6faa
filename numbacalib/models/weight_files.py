"""Choice of a directory's weight files, by transformers' rules."""

from __future__ import annotations

import os
from pathlib import Path, PureWindowsPath

from numbacalib.models.fields import Fields
from numbacalib.models.input_files import InputFiles
from numbacalib.models.safetensors_file import HEADER_BYTES, TensorEntry, read_header

__all__ = ["weight_headers"]

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"

# Other files that may hold weights, and advice for error messages.
_OTHERS = (
    ("pytorch_model*.bin*", "PyTorch's pickles: load and save the model with transformers 5"),
    ("adapter_model.*", "an adapter: merge it into its model first"),
    ("consolidated*", "Mistral's or Meta's own layout: convert it with transformers"),
    ("weights*.npz", "MLX's arrays: take the model they were made from"),
    ("tf_model.h5", "TensorFlow's weights: load and save the model with transformers 4"),
    ("flax_model.msgpack", "Flax's weights: load and save the model with transformers 4"),
    ("*.gguf", "a GGUF file: give its own path"),
    ("*.safetensors", "safetensors files of names that transformers does not read"),
)


def weight_headers(files: InputFiles, path: Path) -> list[dict[str, TensorEntry]]:
    """Read the headers of ``model.safetensors``, else of the shards that the index names.

    That is transformers' order. Other files are ignored, such as copies of older weights or adapters.

    Raises
    ------
    ValueError
        If there is neither, with the name of what was found; if the index names files outside of the
        directory (which links inside of it may point to), or tensors that its shards do not have.
    """
    whole, index = path / _WHOLE, path / _INDEX
    if os.path.lexists(whole):
        return [read_header(files, whole)]
    if not os.path.lexists(index):
        raise ValueError(f"{path}: expected {_WHOLE} or {_INDEX}, found {_found(path)}")
    content = Fields(files.read_json(index, HEADER_BYTES))
    try:
        weight_map = content.object("weight_map")
        places = {name: weight_map.text(name) for name in weight_map}
        if not places:
            raise content.error("weight_map", "names and files")
        names = sorted(set(places.values()))
        for name in names:
            _check_inside(name)
    except ValueError as error:
        raise ValueError(f"{index}: {error}") from None
    missing = [name for name in names if not os.path.lexists(path / name)]
    if missing:
        raise ValueError(f"{index}: names files that are missing: {', '.join(missing[:3])}")
    headers = {name: read_header(files, path / name) for name in names}
    for tensor, file in places.items():
        if tensor not in headers[file]:
            raise ValueError(
                f"{index}: expected {tensor[:200]!r} in {file}, which does not have it"
            )
    return list(headers.values())


def _check_inside(name: str) -> None:
    """Refuse a file name that is absolute or leaves the directory, on any system."""
    path = PureWindowsPath(name)
    outside = path.anchor or ".." in path.parts
    if outside or not name.isprintable() or not name.endswith(".safetensors"):
        raise ValueError(
            f"weight_map: expected the names of safetensors files in its directory, got {name[:200]!r}"
        )


def _found(path: Path) -> str:
    for pattern, meaning in _OTHERS:
        if others := sorted(file.name for file in path.glob(pattern)):
            return f"{others[0]} ({meaning})"
    return "none"
