"""Hugging Face checkpoint directories: ``config.json``, ``*.safetensors``, ``tokenizer.json``."""

from __future__ import annotations

import json
import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from numbacalib.models.checkpoint import Checkpoint, TensorInfo
from numbacalib.models.tokenizer import read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["HuggingFaceCheckpoint"]

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)


class _Entry(NamedTuple):
    """Where a tensor lies: its file's bytes, and the span within them."""

    data: NDArray[np.uint8]
    begin: int
    end: int
    info: TensorInfo


class HuggingFaceCheckpoint(Checkpoint):
    """A directory as ``save_pretrained`` writes it, memory-mapped.

    Parameters
    ----------
    path : Path
        The directory.

    Raises
    ------
    ValueError
        If a file is missing, damaged or shorter than its header says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hf_config = _read_json(path / "config.json")
        self._entries: dict[str, _Entry] = {}
        for file in _weight_files(path):
            self._entries.update(_read_safetensors(file))

    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def info(self, name: str) -> TensorInfo:
        return self._entry(name).info

    def tensor(self, name: str) -> NDArray[Any]:
        entry = self._entry(name)
        return entry.data[entry.begin : entry.end].view(entry.info.dtype).reshape(entry.info.shape)

    def hf_config(self) -> dict[str, Any]:
        return dict(json.loads(json.dumps(self._hf_config)))

    def tokenizer_files(self) -> dict[str, bytes]:
        files = (self.path / name for name in _TOKENIZER_FILES)
        return {file.name: file.read_bytes() for file in files if file.is_file()}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.path)

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise self._unknown(name) from None


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"{file.parent}: expected a {file.name}, found none")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(content).__name__}")
    return content


def _weight_files(path: Path) -> list[Path]:
    """The shards that the index names, or every safetensors file where there is no index."""
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise ValueError(f"{path}: expected *.safetensors files, found none")
        return files
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index}: expected a weight_map object, found none")
    files = [path / name for name in sorted(set(weight_map.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"{index}: names files that are missing: {', '.join(missing)}")
    return files


def _read_safetensors(file: Path) -> dict[str, _Entry]:
    """Map one file and check every span against its length.

    The layout is 8 bytes with the header's length, the header (JSON), the data; offsets count from
    the data's start. https://huggingface.co/docs/safetensors/index#format
    """
    if file.stat().st_size < 8:
        raise ValueError(f"{file}: truncated, {file.stat().st_size} bytes are no safetensors file")
    data = np.memmap(file, dtype=np.uint8, mode="r").view(np.ndarray)
    start = 8 + int(data[:8].view("<u8")[0])
    if start > data.size:
        raise ValueError(
            f"{file}: truncated or not safetensors, the header ends at byte {start} of {data.size}"
        )
    try:
        header = dict(json.loads(data[8:start].tobytes()))
        header.pop("__metadata__", None)
        spans = {name: _entry(data, start, **fields) for name, fields in header.items()}
    except (ValueError, TypeError) as error:  # not JSON, or not of this layout
        raise ValueError(f"{file}: damaged header ({error})") from None
    end = max((entry.end for entry in spans.values()), default=start)
    if end > data.size:
        raise ValueError(f"{file}: truncated, its header names {end} bytes, it has {data.size}")
    return spans


def _entry(
    data: NDArray[np.uint8], start: int, dtype: str, shape: list[int], data_offsets: list[int]
) -> _Entry:
    if dtype not in _DTYPES:
        raise ValueError(f"expected a dtype of {', '.join(_DTYPES)}, got {dtype}")
    info = TensorInfo(tuple(shape), _DTYPES[dtype])
    begin, end = (start + offset for offset in data_offsets)
    if not start <= begin <= end or end - begin != math.prod(shape) * info.dtype.itemsize:
        raise ValueError(f"{dtype} {shape} does not take bytes {begin} to {end}")
    return _Entry(data, begin, end, info)
