"""GGUF files, read as if they were Hugging Face checkpoints."""

from __future__ import annotations

import copy
import json
import re
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
from numbacalib.models.gguf_names import expert_names, hf_name, is_merged
from numbacalib.models.gguf_tokenizer import build_tokenizer, tokenizer_config
from numbacalib.models.gguf_types import TensorType
from numbacalib.models.layer_tensors import is_norm
from numbacalib.models.tokenizer import named_errors
from numbacalib.runtime.extras import extra

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["GGUFCheckpoint", "permuted"]

_EMBEDDINGS = "model.embed_tokens.weight"
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
        count = options.integer("expert_count", 0)
        found: dict[str, tuple[str, int | None]] = {}
        for name, entry in self._file.tensors.items():
            if name in _ROPE:
                continue
            if not is_merged(name, model_type):
                found[hf_name(name, model_type)] = name, None
                continue
            if len(entry.shape) != 3 or entry.shape[0] != count:
                raise options.error("expert_count", f"the experts of {name}, {list(entry.shape)}")
            experts = expert_names(name, model_type, count)
            found |= {expert: (name, number) for number, expert in enumerate(experts)}
        return found

    def names(self) -> tuple[str, ...]:
        return tuple(self._names)

    def info(self, name: str) -> TensorInfo:
        entry = self._entry(name)
        return TensorInfo(entry.shape, entry.kind.dtype or np.dtype(np.float32))

    def tensor(self, name: str) -> NDArray[Any]:
        heads = self._permuted_heads(name)
        entry = self._entry(name)
        result = self._file.read(*self._names[name]).reshape(entry.shape)
        if heads:
            result = _unpermute(result, heads)
        if self._offset and is_norm(self.config, name):
            result = result - self._offset
        result.flags.writeable = False
        return result

    def kind(self, name: str) -> TensorType:
        """Return the type in which a tensor is stored."""
        return self._entry(name).kind

    def blocks(self, name: str) -> NDArray[np.uint8]:
        """Rows of a matrix as they are stored, uint8 [M, bytes], in the order of `tensor`."""
        entry, heads = self._entry(name), self._permuted_heads(name)
        result = self._file.read_bytes(*self._names[name]).reshape(entry.shape[0], -1)
        return _unpermute(result, heads) if heads else result

    def metadata_bytes(self) -> dict[str, bytes]:
        """All metadata by key, each value's type and bytes as they are in the file."""
        return self._file.metadata_bytes()

    def _permuted_heads(self, name: str) -> int:
        """Heads of queries or keys whose rows GGUF has in another order; 0 for everything else."""
        entry = self._entry(name)
        projection = re.search(r"self_attn\.([qk])_proj\.", name)
        if not projection or not self._own.permuted:
            return 0
        heads = self.config.num_heads if projection[1] == "q" else self.config.num_kv_heads
        if entry.shape[0] != heads * self.config.head_dim:
            raise ValueError(
                f"{self.path}: {name}: expected {heads} heads of {self.config.head_dim}, "
                f"got shape {entry.shape}"
            )
        return heads

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
        entry = self._file.tensors[stored].part(expert)
        experts = self._described.experts
        if experts and experts.shared_gate and name.endswith(f".{experts.shared_gate}.weight"):
            return entry._replace(shape=(1, *entry.shape[-1:]))  # a vector in GGUF
        return entry

    def _dtype(self) -> str:
        """The type that holds every matrix without loss."""
        tensors = (self._entry(name) for name in self._names)
        types = {entry.kind.name for entry in tensors if len(entry.shape) == 2}
        narrow = {"F16": "float16", "BF16": "bfloat16"}
        return narrow.get(types.pop(), "float32") if len(types) == 1 else "float32"


def permuted(tensor: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of q or k in the order of GGUF's llama convention: the inverse of `_unpermute`."""
    paired = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(tensor.shape)


def _unpermute(tensor: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of q or k back in Hugging Face order.

    GGUF's llama convention rotates rows ``(2i, 2i + 1)``, Hugging Face's ``(i, i + head_dim / 2)``.
    """
    paired = tensor.reshape(heads, -1, 2, *tensor.shape[1:])
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(tensor.shape)
