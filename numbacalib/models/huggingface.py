"""Hugging Face checkpoint directories: ``config.json``, safetensors files, ``tokenizer.json``."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from numbacalib.models.checkpoint import Checkpoint, TensorInfo
from numbacalib.models.config import ModelConfig
from numbacalib.models.fused_experts import View, expert_entries
from numbacalib.models.layer_tensors import EMBEDDINGS, HEAD, is_linear
from numbacalib.models.packed_sources import DTYPE, PackedSource, packed_source
from numbacalib.models.safetensors_file import (
    STORED_TYPES,
    StoredTensor,
    TensorEntry,
)
from numbacalib.models.tensor_names import canonical_name, denied, is_buffer
from numbacalib.models.tokenizer import read_tokenizer
from numbacalib.models.weight_files import weight_headers
from numbacalib.models.wrappers import QUANTIZATION

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

__all__ = ["HuggingFaceCheckpoint"]

log = logging.getLogger("numbacalib")

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
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
_COPIED_BEGINNINGS = ("CHAT_TEMPLATE.", "LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
_TEMPLATES = "additional_chat_templates"
_COPIED_BYTES = 1 << 28

# Bytes of two tensors to compare at a time.
_COMPARED = 1 << 26


class HuggingFaceCheckpoint(Checkpoint):
    """A directory in the layout of ``save_pretrained``.

    The weights are those that transformers reads: ``model.safetensors``, else the shards of
    ``model.safetensors.index.json``. Buffers of older versions are left out, as is a tied head that equals
    the embeddings. A tied head that differs from them is used, as in transformers 5.

    Parameters
    ----------
    path : Path
        The directory.

    Raises
    ------
    ValueError
        One line that names the file (and its key or tensor): if a file is missing, damaged or
        shorter than its header says, or if the configuration is not supported.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        config_file = path / "config.json"
        self._hf_config = dict(self.files.read_json(config_file))
        try:
            config = self.config
            self._source = packed_source(self._hf_config)
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
        self._dropped: dict[str, str] = {}
        self._views: dict[str, View] = {}
        self._packed: dict[str, tuple[str, str]] = {}
        self._parts: dict[str, TensorEntry] = {}
        self._stored_names: dict[str, str] = {}
        for header in weight_headers(self.files, path):
            for name, entry in header.items():
                self._add(name, entry)
        if self._source is not None:
            self._unpack(self._source)
        packed = any(self._hf_config.get(key) is not None for key in QUANTIZATION)
        if not packed:
            self._refuse_mlx()
        self._drop_denied(config, packed)
        if config.tie_word_embeddings:
            self._drop_tied_head()

    @property
    def dropped(self) -> dict[str, str]:
        return dict(self._dropped)

    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def info(self, name: str) -> TensorInfo:
        entry = self._entry(name)
        if name in self._packed:
            assert self._source is not None
            shapes = (self._shape(part, self._parts[part]) for part in self._packed[name])
            return TensorInfo(self._source.shape(*shapes), DTYPE)
        return TensorInfo(self._shape(name, entry), self._dtype(name, entry))

    def stored_bytes(self, name: str) -> int:
        if self._is_made(name):
            return super().stored_bytes(name)
        return self._entry(name).length

    def tensor(self, name: str) -> NDArray[Any]:
        if name not in self._packed:
            return self._whole(name, self._entry(name))
        assert self._source is not None
        codes, scales = (self._whole(part, self._parts[part]) for part in self._packed[name])
        weight = self._source.decode(codes, scales)
        weight.flags.writeable = False
        return weight

    def tiles(self, name: str, rows: int) -> Iterator[NDArray[Any]]:
        if self._is_made(name):
            yield from super().tiles(name, rows)
            return
        entry = self._entry(name)
        length, *rest = entry.shape
        for first in range(0, length, rows):
            begin = entry.begin + first * (entry.length // length)
            yield self._read(name, entry, begin, (min(rows, length - first), *rest))

    def stored(self, name: str) -> StoredTensor:
        whole = self.config.architecture.transposed  # transposed layers are copied as stored
        if self._is_made(name) and not whole:
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

    def weight_files(self) -> set[Path]:
        return {entry.file for entry in (*self._entries.values(), *self._parts.values())}

    def _is_made(self, name: str) -> bool:
        """Return whether a tensor is a view or unpacked, rather than a byte range of a file."""
        return name in self._views or name in self._packed

    def _shape(self, name: str, entry: TensorEntry) -> tuple[int, ...]:
        return self._views[name].shape(entry.shape) if name in self._views else entry.shape

    def _whole(self, name: str, entry: TensorEntry) -> NDArray[Any]:
        """Read a stored tensor in its own dtype, as our view of it."""
        stored = self._read(name, entry, entry.begin, entry.shape)
        return self._views[name].of(stored) if name in self._views else stored

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
        if is_buffer(name, self.config):
            self._dropped[name] = "a table that is computed from the configuration"
            return
        try:
            experts = expert_entries(self.config, name, entry)
        except ValueError as error:
            raise ValueError(f"{entry.file}: {error}") from None
        if experts is not None:
            theirs, ours = _beginnings(stored_name, name)
            for tensor, (part, view) in experts.items():
                self._add(theirs + tensor.removeprefix(ours), part)
                self._views[tensor] = view
            return
        floats = entry.dtype_name in ("F64", "F32", "F16", "BF16")
        if self.config.architecture.transposed and floats and is_linear(name, self.config):
            self._views[name] = View(True, slice(None))
        if not name.endswith(stored_name):  # a base model only lacks the prefix
            self._stored_names[name] = stored_name
        if name in self._entries:
            raise ValueError(
                f"{entry.file}: expected {name} once, it is in {self._entries[name].file.name} too"
            )
        self._entries[name] = entry

    def _unpack(self, source: PackedSource) -> None:
        """Replace codes and scales by the weights they encode, and drop them from the configuration."""
        for name in list(self._entries):
            layer, _, ending = name.rpartition(".")
            if ending in source.others:
                del self._entries[name]
                self._dropped[name] = "a scale of activations, which are not quantized"
            if ending != source.codes or not source.packs(self._entries[name]):
                continue
            scales, entry = f"{layer}.{source.scales}", self._entries.pop(name)
            if scales not in self._entries:
                raise ValueError(f"{entry.file}: {name}: expected {scales} beside it, found none")
            self._parts |= {name: entry, scales: self._entries.pop(scales)}
            self._packed[f"{layer}.weight"] = name, scales
            self._entries[f"{layer}.weight"] = entry
            try:
                self.info(f"{layer}.weight")
            except ValueError as error:
                raise ValueError(f"{entry.file}: {scales}: {error}") from None
        for key in QUANTIZATION:
            self._hf_config.pop(key, None)

    def _refuse_mlx(self) -> None:
        for name, entry in self._entries.items():
            layer = name.removesuffix(".weight")
            if entry.dtype_name == "U32" and f"{layer}.scales" in self._entries:
                raise ValueError(
                    f"{entry.file}: {name}: expected the quantization of weights that MLX packed (U32 with "
                    "scales) in config.json, found none"
                )

    def _drop_denied(self, config: ModelConfig, packed: bool) -> None:
        """Leave out tensors that the configuration has no place for, as transformers does, and warn."""
        names = denied(config, self._entries, packed=packed)
        for name in names:
            del self._entries[name]
        if names:
            log.warning(
                "%s: %d tensors have no place in a %s of %d layers as config.json describes it, and are "
                "left out, as transformers does: %s",
                self.path,
                len(names),
                config.model_type,
                config.num_layers,
                ", ".join(repr(name[:200]) for name in names[:3]),
            )

    def _drop_tied_head(self) -> None:
        """Leave out a stored head that equals the embeddings, or untie one that differs.

        With a head that differs, transformers 5 uses the head, transformers 4 and vLLM the embeddings; all
        agree on an untied configuration.
        """
        head, table = self._entries.get(HEAD), self._entries.get(EMBEDDINGS)
        if head is None or table is None:
            return
        if head[1:3] == table[1:3] and self._same_bytes(head, table):
            del self._entries[HEAD]
            self._dropped[HEAD] = f"repeats {EMBEDDINGS}, to which it is tied"
            return
        log.warning(
            "%s: config.json ties %s to the embeddings, but it differs from them: it is used, as in "
            "transformers 5, and the output's config.json unties it",
            head.file,
            HEAD,
        )
        self._hf_config["tie_word_embeddings"] = False
        del self.config

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


def _beginnings(stored_name: str, name: str) -> tuple[str, str]:
    """Return the prefixes of two names before their common suffix."""
    pairs = zip(reversed(stored_name), reversed(name), strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return stored_name[: len(stored_name) - same], name[: len(name) - same]


def _copied_files(path: Path) -> Iterator[Path]:
    """Yield the files that an output directory needs besides config and weights, no directories."""
    for file in sorted(path.iterdir()):
        copied = file.name in _COPIED or file.name.upper().startswith(_COPIED_BEGINNINGS)
        if copied and not file.is_dir():
            yield file
    templates = path / _TEMPLATES
    if templates.is_dir():
        yield from (file for file in sorted(templates.iterdir()) if not file.is_dir())
