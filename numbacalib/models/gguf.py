"""GGUF files, read as if they were Hugging Face checkpoints."""

from __future__ import annotations

import copy
import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.architectures import ARCHITECTURES
from numbacalib.models.checkpoint import Checkpoint, TensorInfo
from numbacalib.models.gguf_architectures import GGUF_ARCHITECTURES
from numbacalib.models.gguf_config import (
    FACTORS,
    ROPE_DIVISORS,
    architecture_of,
    hf_config,
)
from numbacalib.models.gguf_file import GGUFFile, TensorEntry, named
from numbacalib.models.gguf_layouts import LATENT_PARTS, joined_latent, row_order
from numbacalib.models.gguf_names import expert_names, hf_name, is_merged
from numbacalib.models.gguf_tokenizer import build_tokenizer, tokenizer_config
from numbacalib.models.gguf_types import TensorType, type_named
from numbacalib.models.layer_tensors import is_norm
from numbacalib.models.tokenizer import named_errors
from numbacalib.runtime.extras import extra

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["GGUFCheckpoint"]

_EMBEDDINGS = "model.embed_tokens.weight"
_SECOND_NORM = "blk.0.attn_norm_2.weight"
_ROPE = (ROPE_DIVISORS, *FACTORS.values())


class GGUFCheckpoint(Checkpoint):
    """A GGUF file of a model that `GGUF_ARCHITECTURES` has.

    Tensors of every type that the ``gguf`` package dequantizes; quantized ones become float32 each time
    `tensor` is called.

    Parameters
    ----------
    path : Path

    Raises
    ------
    ValueError
        If the file is damaged or cut short, or has an architecture, an option or a tensor type that
        is not supported.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GGUFFile(path)
        with named(path):
            self._architecture = architecture_of(self._file.metadata)
            self._own = GGUF_ARCHITECTURES[self._architecture]
            self._options = self._file.metadata.under(f"{self._architecture}.")
            self._described = ARCHITECTURES[self._own.type_of(self._options)]
            self._names = self._hf_names()
            if _EMBEDDINGS not in self._names:
                raise ValueError("token_embd.weight: expected the embeddings, got none")
        self._file.require_readable()
        factors = {name: self._file.read(name) for name in _ROPE if name in self._file.tensors}
        with named(path):
            self._hf_config = hf_config(
                self._file.metadata,
                self._architecture,
                {name: self._entry(name).shape for name in self._names},
                factors,
            )
            self._hf_config["torch_dtype"] = self._dtype()
            # GGUF's norms are as they multiply
            self._offset = np.float32(self.config.architecture.norm_offset)

    def _hf_names(self) -> dict[str, tuple[str, int | None]]:
        """Hugging Face's names of all tensors: GGUF's, and an expert's number in the tensor of all."""
        model_type, options = self._described.model_type, self._options
        variant = "two norms" if _SECOND_NORM in self._file.tensors else ""
        count = options.integer("expert_count", 0)
        found: dict[str, tuple[str, int | None]] = {}
        for name, entry in self._file.tensors.items():
            if name in _ROPE:
                continue
            if not is_merged(name, model_type):
                found[hf_name(self._whole(name), model_type, variant)] = name, None
                continue
            if len(entry.shape) not in (2, 3) or entry.shape[0] != count:
                raise options.error("expert_count", f"the experts of {name}, {list(entry.shape)}")
            experts = expert_names(name, model_type, count)
            found |= {expert: (name, number) for number, expert in enumerate(experts)}
        return found

    def _whole(self, name: str) -> str:
        """Name of the matrix that a tensor is one of two parts of; its own, of any other."""
        for part, other in (LATENT_PARTS, LATENT_PARTS[::-1]):
            if name.endswith(f".{part}.weight"):
                if (beside := name.replace(part, other)) not in self._file.tensors:
                    raise ValueError(f"{beside}: expected it beside {name}, got none")
                if any(len(self._file.tensors[each].shape) != 3 for each in (name, beside)):
                    raise ValueError(f"{name}: expected a matrix a head in it and in {beside}")
                return name.replace(part, "attn_kv_b")
        return name

    def names(self) -> tuple[str, ...]:
        return tuple(self._names)

    def info(self, name: str) -> TensorInfo:
        entry = self._entry(name)
        return TensorInfo(entry.shape, entry.kind.dtype or np.dtype(np.float32))

    def tensor(self, name: str) -> NDArray[Any]:
        entry = self._entry(name)
        parts = self._parts(name)
        if parts is not None:
            result = joined_latent(*map(self._file.read, parts)).astype(entry.kind.dtype)
        else:
            result = self._file.read(*self._names[name])
        result = self._in_our_order(name, result.reshape(entry.shape))
        if self._offset and is_norm(self.config, name):
            result = result - self._offset
        result.flags.writeable = False
        return result

    def kind(self, name: str) -> TensorType:
        """Return the type in which a tensor is stored; of one in two parts that of its numbers."""
        return self._entry(name).kind

    def blocks(self, name: str) -> NDArray[np.uint8]:
        """Rows of a matrix as they are stored, uint8 [M, bytes], in the order of `tensor`."""
        rows = self._file.read_bytes(*self._names[name]).reshape(self._entry(name).shape[0], -1)
        return self._in_our_order(name, rows)

    def metadata_bytes(self) -> dict[str, bytes]:
        """All metadata by key, each value's type and bytes as they are in the file."""
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

    def _parts(self, name: str) -> tuple[str, str] | None:
        """Names of the two tensors that make up a matrix; None for all that are one."""
        stored, _ = self._names[name]
        keys, values = LATENT_PARTS
        own = next((part for part in LATENT_PARTS if f".{part}." in stored), None)
        if own is None:
            return None
        return stored.replace(own, keys), stored.replace(own, values)

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

    def _entry(self, name: str) -> TensorEntry:
        try:
            stored, expert = self._names[name]
        except KeyError:
            raise self._unknown(name) from None
        if (parts := self._parts(name)) is not None:
            return self._joined_entry(*(self._file.tensors[part] for part in parts))
        entry = self._file.tensors[stored].part(expert)
        experts = self._described.experts
        if experts and name.endswith(experts.rows):
            return entry._replace(shape=(1, *entry.shape[-1:]))  # a vector in GGUF
        return entry

    def _joined_entry(self, keys: TensorEntry, values: TensorEntry) -> TensorEntry:
        """Return the entry of a matrix that is made of two, whose numbers are in a type that has both's."""
        (heads, length, still), (others, size, own) = keys.shape, values.shape
        if (heads, length) != (others, own):
            raise ValueError(
                f"{self.path}: {LATENT_PARTS[0]}: expected matrices that fit {LATENT_PARTS[1]} "
                f"{list(values.shape)}, got {list(keys.shape)}"
            )
        same = keys.kind == values.kind and keys.kind.dtype is not None
        kind = keys.kind if same else type_named("F32")
        return TensorEntry(kind, (heads * (still + size), length), keys.begin)

    def _dtype(self) -> str:
        """The type that holds every matrix without loss."""
        tensors = (self._entry(name) for name in self._names)
        types = {entry.kind.name for entry in tensors if len(entry.shape) == 2}
        narrow = {"F16": "float16", "BF16": "bfloat16"}
        return narrow.get(types.pop(), "float32") if len(types) == 1 else "float32"
