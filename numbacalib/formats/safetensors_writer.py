"""Writer of safetensors files, tensor by tensor, in shards.

A file is 8 bytes with the header's length, the header (JSON), and the data.
https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from numbacalib.models.safetensors_file import STORED_TYPES, StoredTensor

SHARD_BYTES = 1 << 30
"""Most bytes of data in a shard, and so in a writer's memory: 1 GiB."""


class SafetensorsWriter:
    """Writer of a model's tensors to ``model.safetensors``, or to shards with an index.

    A context manager. A shard is written when the next tensor would exceed `shard_bytes`, so no more than
    that is held in memory; a larger tensor has its own shard. Shards get their final names, and the index
    is written, when the ``with`` statement ends without an exception.

    Parameters
    ----------
    directory : Path
        An existing directory.
    shard_bytes : int, default 1 GiB
    """

    def __init__(self, directory: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
        self._directory = directory
        self._shard_bytes = shard_bytes
        self._pending: dict[str, StoredTensor] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []
        self._names: set[str] = set()
        self.total_bytes = 0
        """Data of all tensors so far, headers not counted."""

    def add(self, name: str, tensor: NDArray[Any]) -> None:
        """Write a tensor; it is kept by reference until its shard is written, so do not modify it.

        Raises
        ------
        ValueError
            If the name was used before.
        TypeError
            If the format has no name for the dtype.
        OSError
            If writing fails.
        """
        try:
            stored = StoredTensor.of(tensor)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        self.add_stored(name, stored)

    def add_stored(self, name: str, tensor: StoredTensor) -> None:
        """Write the bytes of a tensor of any of the format's types; kept as in `add`.

        Raises
        ------
        ValueError
            If the name was used before.
        OSError
            If writing fails.
        """
        if name in self._names:
            raise ValueError(f"name: expected one not written before, got {name!r}")
        length = len(tensor.data)
        if self._pending and self._pending_bytes + length > self._shard_bytes:
            self._flush()
        self._names.add(name)
        self._pending[name] = tensor
        self._pending_bytes += length
        self.total_bytes += length

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._close()

    def _flush(self) -> None:
        self._shards.append(list(self._pending))
        write_safetensors(self._shard_path(len(self._shards)), self._pending)
        self._pending, self._pending_bytes = {}, 0

    def _close(self) -> None:
        """Write the pending tensors, rename the shards by their number, and write the index."""
        self._flush()
        count = len(self._shards)
        if count == 1:
            self._shard_path(1).rename(self._directory / "model.safetensors")
            return
        weight_map = {}
        for number, names in enumerate(self._shards, start=1):
            file = f"model-{number:05d}-of-{count:05d}.safetensors"
            self._shard_path(number).rename(self._directory / file)
            weight_map.update(dict.fromkeys(names, file))
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
        path = self._directory / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _shard_path(self, number: int) -> Path:
        """Return the path of a shard until the number of shards is known."""
        return self._directory / f"shard-{number:05d}.partial"


def write_safetensors(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Write one file.

    Raises
    ------
    OSError
        If writing fails.
    """
    # Wide elements first: every tensor then starts at a multiple of its element size.
    order = sorted(tensors, key=lambda name: -STORED_TYPES[tensors[name].dtype_name].bits)
    # transformers refuses a file without a format.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + len(tensor.data)
        header[name] = {
            "dtype": tensor.dtype_name,
            "shape": tensor.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            file.write(tensors[name].data.data)
