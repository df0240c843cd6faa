"""Safetensors files byte by byte, whole or damaged.

The layout: https://huggingface.co/docs/safetensors/index#format.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any


def with_header(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of any header: JSON of it, or bytes as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def file(
    tensors: Mapping[str, tuple[str, list[int], bytes]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """A file of tensors: dtype as safetensors calls it, shape, and bytes."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += content
    return with_header(header, data)


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def integer(value: int) -> bytes:
    return struct.pack("<q", value)


def fisher() -> dict[str, tuple[str, list[int], bytes]]:
    """What `save_fisher` writes of one weight [1, 2]."""
    return {
        "q.weight.fisher": ("F32", [1, 2], floats(1, 2)),
        "q.weight.samples": ("I64", [], integer(3)),
    }


SHARED = {"numbacalib.statistics": json.dumps({"q": "q", "k": "q"})}


def statistics() -> dict[str, tuple[str, list[int], bytes]]:
    """What `save_statistics` writes of one input of two channels, with one layer's weight."""
    return {
        "q.hessian": ("F32", [2, 2], floats(2, -1, -1, 2)),
        "q.mean_abs": ("F32", [2], floats(1, 2)),
        "q.max_abs": ("F32", [2], floats(1, 2)),
        "q.tokens": ("I64", [], integer(5)),
        "k.weight": ("BF16", [1, 2], b"\x80\x3f\x00\x40"),
    }
