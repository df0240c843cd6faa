"""GGUF files, presented as Hugging Face checkpoints."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.architectures import ARCHITECTURES
from numbacalib.models.checkpoint import Checkpoint, TensorInfo
from numbacalib.models.gguf_architectures import GGUF_ARCHITECTURES
from numbacalib.models.gguf_config import FURTHER, architecture_of, block_count, hf_config
from numbacalib.models.gguf_file import GGUFFile, TensorEntry, named
from numbacalib.models.gguf_layouts import column_tiles, joined_latent, joined_rows, row_order
from numbacalib.models.gguf_names import expert_names, hf_name, is_merged, parts_of
from numbacalib.models.gguf_rope import FACTORS, ROPE_DIVISORS
from numbacalib.models.gguf_tokenizer import build_tokenizer, tokenizer_config
from numbacalib.models.gguf_types import TensorType, type_named
from numbacalib.models.gguf_values import as_ours, our_shape
from numbacalib.models.layer_tensors import EMBEDDINGS, HEAD, LAYER_TABLE
from numbacalib.models.tensor_names import module_name
from numbacalib.models.tokenizer import named_errors
from numbacalib.runtime.extras import extra

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["GGUFCheckpoint"]

_TABLES = (EMBEDDINGS, HEAD, LAYER_TABLE)
"""Large matrices with the same layout in GGUF and in Hugging Face's files, which are read in tiles."""
_SECOND_NORM = "blk.0.attn_norm_2.weight"
_ROPE = (ROPE_DIVISORS, *FACTORS.values())


class _Stored(NamedTuple):
    """A tensor of the file, or a part of one."""

    tensor: str
    entry: TensorEntry


class GGUFCheckpoint(Checkpoint):
    """A GGUF file of an architecture in `GGUF_ARCHITECTURES`.

    Reads every tensor type that the ``gguf`` package dequantizes; quantized tensors are dequantized to
    float32 by each call of `tensor`.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    architecture : str
        GGUF's name of the architecture.
    options : Metadata
        The file's metadata under that name.

    Raises
    ------
    ValueError
        If the file is damaged or truncated, or has an architecture, an option or a tensor type that is
        not supported.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GGUFFile(path)
        with named(path):
            self.architecture = architecture_of(self._file.metadata)
            self._own = GGUF_ARCHITECTURES[self.architecture]
            self.options = self._file.metadata.under(f"{self.architecture}.")
            self._described = ARCHITECTURES[self._own.type_of(self.options)]
            self._dropped: dict[str, str] = {}
            self._names = self._hf_names()
            if EMBEDDINGS not in self._names:
                raise ValueError("token_embd.weight: expected the embeddings, got none")
        self._file.require_readable()
        factors = {name: self._file.read(name) for name in _ROPE if name in self._file.tensors}
        with named(path):
            self._hf_config = hf_config(
                self._file.metadata,
                self.architecture,
                {name: self._entry(name).shape for name in self._names},
                factors,
            )
            self._hf_config["torch_dtype"] = self._dtype()

    def _hf_names(self) -> dict[str, list[_Stored]]:
        """Map Hugging Face's tensor names to the stored tensor, or to the two that hold it."""
        variant = "two norms" if _SECOND_NORM in self._file.tensors else ""
        found: dict[str, list[_Stored]] = {}
        last = block_count(self.options) if self.options.integer(FURTHER, 0) else None
        for name in self._file.tensors:
            if name in _ROPE:
                continue
            if last is not None and _block_of(name) >= last:
                self._dropped[name] = "of a multi-token prediction (MTP) layer"
                continue
            if is_merged(name, self._described.model_type):
                own = self._experts(name)
            else:
                own = {hf_name(name, self._described.model_type, variant): self._whole(name)}
            for ours, stored in own.items():
                if (before := found.setdefault(ours, stored)) != stored:
                    raise ValueError(f"{name}: expected {ours} once, {before[0].tensor} has it too")
        return found

    def _experts(self, name: str) -> dict[str, list[_Stored]]:
        """Split a tensor of all experts into those of each."""
        count, entry = self.options.integer("expert_count", 0), self._file.tensors[name]
        names = expert_names(name, self._described.model_type, count)
        roles = len(names) // max(count, 1)
        if len(entry.shape) not in (2, 3) or entry.shape[0] != count or entry.shape[1] % roles:
            shape = list(entry.shape)
            raise self.options.error("expert_count", f"the experts of {name}, {shape}")
        return {
            expert: [_Stored(name, entry.part(number, len(names)))]
            for number, expert in enumerate(names)
        }

    def _whole(self, name: str) -> list[_Stored]:
        """Return the stored tensors, in order, of the matrix that a tensor is or is part of."""
        names, tensors = parts_of(name, self._described.model_type) or (name,), self._file.tensors
        missing = next((each for each in names if each not in tensors), None)
        if missing is not None:
            raise ValueError(f"{missing}: expected it beside {name}, got none")
        dimensions = 3 if "latent" in self._described.linears else 2
        if len(names) > 1 and any(len(tensors[each].shape) != dimensions for each in names):
            raise ValueError(f"{name}: expected {dimensions} dimensions in {' and '.join(names)}")
        return [_Stored(each, tensors[each]) for each in names]

    @property
    def dropped(self) -> dict[str, str]:
        return dict(self._dropped)

    def names(self) -> tuple[str, ...]:
        return tuple(self._names)

    def info(self, name: str) -> TensorInfo:
        entry = self._entry(name)
        return TensorInfo(entry.shape, entry.kind.dtype or np.dtype(np.float32))

    def tensor(self, name: str) -> NDArray[Any]:
        entry, stored = self._entry(name), self._stored(name)
        parts = [self._file.read(part.tensor, part.entry) for part in stored]
        result = parts[0]
        with named(f"{self.path}: {stored[0].tensor}"):
            if len(parts) == 2:
                result = self._joined(*parts).astype(entry.kind.dtype or np.float32)
            result = as_ours(self.config, name, result)
        result = self._in_our_order(name, result)
        if tiles := column_tiles(self.config, name):
            result = result[:, np.argsort(tiles.order(1))]
        result.flags.writeable = False
        return result

    def tiles(self, name: str, rows: int) -> Iterator[NDArray[Any]]:
        if name not in _TABLES:
            yield from super().tiles(name, rows)
            return
        (stored,) = self._stored(name)
        count = stored.entry.shape[0]
        for first in range(0, count, rows):
            yield self._file.read(stored.tensor, stored.entry.rows(first, min(first + rows, count)))

    def kind(self, name: str) -> TensorType:
        """Return a tensor's stored type; of a tensor in two parts, a type that holds both."""
        return self._entry(name).kind

    def blocks(self, name: str) -> NDArray[np.uint8]:
        """Read a matrix's rows as stored, uint8 [M, bytes], in the order of `tensor`.

        Columns are in GGUF's order: see `numbacalib.models.gguf_layouts.column_tiles`.
        """
        parts = [
            self._file.read_bytes(part.tensor, part.entry).reshape(part.entry.shape[0], -1)
            for part in self._stored(name)
        ]
        rows = parts[0] if len(parts) == 1 else self._joined(*parts)
        return self._in_our_order(name, rows)

    def metadata_bytes(self) -> dict[str, bytes]:
        """Return all metadata by key, with each value's type and bytes as in the file."""
        return self._file.metadata_bytes()

    def _in_our_order(self, name: str, tensor: NDArray[Any]) -> NDArray[Any]:
        """Return a tensor with its rows in Hugging Face's order."""
        order = row_order(self.config, name, paired=self._own.paired)
        if order is None:
            return tensor
        if len(order) != len(tensor):
            raise ValueError(
                f"{self.path}: {name}: expected {len(order)} rows of heads of {self.config.head_dim}, "
                f"got shape {tensor.shape}"
            )
        result = np.empty_like(tensor)
        result[order] = tensor
        return result

    def stored_name(self, name: str) -> str:
        return module_name(name, self.config)

    def hf_config(self) -> dict[str, Any]:
        return copy.deepcopy(self._hf_config)

    def tokenizer_files(self) -> dict[str, bytes]:
        tokenizer = self.tokenizer.to_str(pretty=True)
        with named(self.path):
            config = tokenizer_config(self._file.metadata)
        return {
            "tokenizer.json": tokenizer.encode(),
            "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False).encode(),
        }

    @cached_property
    def tokenizer(self) -> Tokenizer:
        with extra("models"), named_errors(self.path):
            return build_tokenizer(self._file.metadata)

    def weight_files(self) -> set[Path]:
        return {self.path}

    def _stored(self, name: str) -> list[_Stored]:
        try:
            return self._names[name]
        except KeyError:
            raise self._unknown(name) from None

    def _entry(self, name: str) -> TensorEntry:
        """Return the entry that describes the result of `tensor`."""
        stored = self._stored(name)
        entry = stored[0].entry
        if len(stored) == 2:
            return self._joined_entry(*stored)
        return entry._replace(shape=our_shape(self._described, name, entry.shape))

    def _joined(self, first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
        """Return the matrix of two parts, with its rows in Hugging Face's order."""
        if first.ndim == 3:
            return joined_latent(first, second)
        return joined_rows(self.config, first, second)

    def _joined_entry(self, first: _Stored, second: _Stored) -> TensorEntry:
        """Return the entry of a matrix in two parts, with a type that holds both."""
        one, other = first.entry, second.entry
        same = one.kind == other.kind
        if len(one.shape) == len(other.shape) == 2:
            (rows, length), (others, own) = one.shape, other.shape
            shape = rows + others, length
            fits = length == own
        else:
            (heads, length, still), (others, size, own) = one.shape, other.shape
            shape = heads * (still + size), length
            fits, same = (heads, length) == (others, own), same and one.kind.dtype is not None
        if not fits:
            raise ValueError(
                f"{self.path}: {first.tensor}: expected a matrix that fits {second.tensor} "
                f"{list(other.shape)}, got {list(one.shape)}"
            )
        return TensorEntry(one.kind if same else type_named("F32"), shape, one.begin)

    def _dtype(self) -> str:
        """Return the name of the dtype that holds every matrix without loss."""
        tensors = (self._entry(name) for name in self._names)
        types = {entry.kind.name for entry in tensors if len(entry.shape) == 2}
        narrow = {"F16": "float16", "BF16": "bfloat16"}
        return narrow.get(types.pop(), "float32") if len(types) == 1 else "float32"


def _block_of(name: str) -> int:
    """Return the number of a tensor's block; -1 for tensors outside the blocks."""
    match = re.match(r"blk\.([0-9]{1,6})\.", name)
    return int(match[1]) if match else -1
