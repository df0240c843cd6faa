"""Hugging Face checkpoint directories: ``config.json``, safetensors files, ``tokenizer.json``."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from numbacalib.models.checkpoint import Checkpoint, TensorInfo
from numbacalib.models.config import QUANTIZATION
from numbacalib.models.fused_experts import View, expert_entries
from numbacalib.models.layer_tensors import (
    EMBEDDINGS,
    HEAD,
    canonical_name,
    check_names,
    is_buffer,
)
from numbacalib.models.safetensors_file import (
    STORED_TYPES,
    StoredTensor,
    TensorEntry,
)
from numbacalib.models.tokenizer import read_tokenizer
from numbacalib.models.weight_files import weight_headers

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

__all__ = ["HuggingFaceCheckpoint"]

_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "tekken.json",
    "generation_config.json",
)
_COPIED_BEGINNINGS = ("CHAT_TEMPLATE.", "LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
_TEMPLATES = "additional_chat_templates"
_COPIED_BYTES = 1 << 28

# Bytes of two tensors that are compared at a time.
_COMPARED = 1 << 26


class HuggingFaceCheckpoint(Checkpoint):
    """A directory as ``save_pretrained`` writes it.

    The weights are those that transformers reads: ``model.safetensors``, else the shards of
    ``model.safetensors.index.json``. Buffers of older versions are left out, and so is a head that
    repeats the embeddings it is tied to.

    Parameters
    ----------
    path : Path
        The directory.

    Raises
    ------
    ValueError
        One line that names the file (and its key or tensor): if a file is missing, damaged or
        shorter than its header says, if the configuration is not understood, or if there are
        tensors that it denies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        config_file = path / "config.json"
        self._hf_config = self.files.read_json(config_file)
        try:
            config = self.config
        except ValueError as error:
            raise ValueError(f"{config_file}: {error}") from None
        if os.path.lexists(path / "adapter_config.json"):
            # transformers would add the adapter to the weights beside it.
            raise ValueError(
                f"{path / 'adapter_config.json'}: expected a model without an adapter; merge it "
                "into the weights, or remove it"
            )
        self._copied = {file.relative_to(path).as_posix(): file for file in _copied_files(path)}
        for file in self._copied.values():
            self.files.watch(file, _COPIED_BYTES)
        self._entries: dict[str, TensorEntry] = {}
        self._views: dict[str, View] = {}
        self._stored_names: dict[str, str] = {}
        for header in weight_headers(self.files, path):
            for name, entry in header.items():
                self._add(name, entry)
        packed = any(self._hf_config.get(key) is not None for key in QUANTIZATION)
        if not packed:
            self._refuse_mlx()
        try:
            check_names(config, self._entries, packed=packed)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if config.tie_word_embeddings:
            self._drop_tied_head()

    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def info(self, name: str) -> TensorInfo:
        entry = self._entry(name)
        shape = self._views[name].shape(entry.shape) if name in self._views else entry.shape
        return TensorInfo(shape, self._dtype(name, entry))

    def stored_bytes(self, name: str) -> int:
        if name in self._views:
            return super().stored_bytes(name)
        return self._entry(name).length

    def tensor(self, name: str) -> NDArray[Any]:
        entry = self._entry(name)
        stored = self._read(name, entry, entry.begin, entry.shape)
        return self._views[name].of(stored) if name in self._views else stored

    def tiles(self, name: str, rows: int) -> Iterator[NDArray[Any]]:
        entry = self._entry(name)
        length, *rest = entry.shape
        for first in range(0, length, rows):
            begin = entry.begin + first * (entry.length // length)
            yield self._read(name, entry, begin, (min(rows, length - first), *rest))

    def stored(self, name: str) -> StoredTensor:
        if name in self._views:
            return super().stored(name)
        entry = self._entry(name)
        data = self.files.read(entry.file, entry.begin, entry.length)
        return StoredTensor(entry.dtype_name, entry.shape, data)

    def stored_name(self, name: str) -> str:
        layer, _, tensor = name.rpartition(".")
        for own in (name, f"{layer}.weight"):
            if own in self._stored_names:
                return self._stored_names[own].rpartition(".")[0] + f".{tensor}"
        return name

    def hf_config(self) -> dict[str, Any]:
        return dict(json.loads(json.dumps(self._hf_config)))

    def tokenizer_files(self) -> dict[str, bytes]:
        return {
            name: self.files.read_bytes(file, _COPIED_BYTES) for name, file in self._copied.items()
        }

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.path)

    def _read(
        self, name: str, entry: TensorEntry, begin: int, shape: tuple[int, ...]
    ) -> NDArray[Any]:
        dtype = self._dtype(name, entry)
        data = self.files.read(entry.file, begin, math.prod(shape) * dtype.itemsize)
        tensor = data.view(dtype).reshape(shape)
        tensor.flags.writeable = False
        return tensor

    def _add(self, stored_name: str, entry: TensorEntry) -> None:
        name = canonical_name(stored_name, self.config)
        if is_buffer(name):
            return
        try:
            experts = expert_entries(self.config, name, entry)
        except ValueError as error:
            raise ValueError(f"{entry.file}: {error}") from None
        if experts is not None:
            for tensor, (part, view) in experts.items():
                self._add(tensor, part)
                self._views[tensor] = view
            return
        if not name.endswith(stored_name):  # else it is the name of a base model
            self._stored_names[name] = stored_name
        if name in self._entries:
            raise ValueError(
                f"{entry.file}: expected {name} once, it is in {self._entries[name].file.name} too"
            )
        self._entries[name] = entry

    def _refuse_mlx(self) -> None:
        for name, entry in self._entries.items():
            layer = name.removesuffix(".weight")
            if entry.dtype_name == "U32" and f"{layer}.scales" in self._entries:
                raise ValueError(
                    f"{entry.file}: {name}: expected the quantization of weights that MLX packed (U32 with "
                    "scales) in config.json, found none"
                )

    def _drop_tied_head(self) -> None:
        """Leave out a stored head that equals the embeddings.

        Of one that differs, transformers 5 computes with the head, transformers 4 and vLLM with the
        embeddings.
        """
        head, table = self._entries.get(HEAD), self._entries.get(EMBEDDINGS)
        if head is None or table is None:
            return
        if head[1:3] != table[1:3] or not self._same_bytes(head, table):
            raise ValueError(
                f"{head.file}: {HEAD}: expected what {EMBEDDINGS} holds, as config.json ties them, "
                "found something else; set tie_word_embeddings to false to use it"
            )
        del self._entries[HEAD]

    def _same_bytes(self, one: TensorEntry, other: TensorEntry) -> bool:
        for start in range(0, one.length, _COMPARED):
            length = min(_COMPARED, one.length - start)
            first, second = (
                self.files.read(entry.file, entry.begin + start, length) for entry in (one, other)
            )
            if not (first == second).all():
                return False
        return True

    def _dtype(self, name: str, entry: TensorEntry) -> np.dtype[Any]:
        dtype = STORED_TYPES[entry.dtype_name].dtype
        if dtype is None:
            raise ValueError(
                f"{entry.file}: {name}: expected elements of whole bytes, got {entry.dtype_name}"
            )
        return dtype

    def _entry(self, name: str) -> TensorEntry:
        try:
            return self._entries[name]
        except KeyError:
            raise self._unknown(name) from None


def _copied_files(path: Path) -> Iterator[Path]:
    """What an output directory needs besides config and weights; directories of the name are not."""
    for file in sorted(path.iterdir()):
        copied = file.name in _COPIED or file.name.upper().startswith(_COPIED_BEGINNINGS)
        if copied and not file.is_dir():
            yield file
    templates = path / _TEMPLATES
    if templates.is_dir():
        yield from (file for file in sorted(templates.iterdir()) if not file.is_dir())
