"""GGUF files byte by byte, whole or damaged: what no writer would write.

The layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

U8, U32, F32, BOOL, STRING, ARRAY, U64, F64 = 0, 4, 6, 7, 8, 9, 10, 12


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def value(item: Any) -> bytes:
    """A value with its type: bytes are taken as they are."""
    if isinstance(item, bytes):
        return item
    if isinstance(item, bool):
        return struct.pack("<I?", BOOL, item)
    if isinstance(item, int):
        return struct.pack("<II", U32, item)
    if isinstance(item, float):
        return struct.pack("<If", F32, item)
    if isinstance(item, str):
        return struct.pack("<I", STRING) + string(item)
    kind = value(item[0])[:4]
    items = b"".join(value(each)[4:] for each in item)
    return struct.pack("<I", ARRAY) + kind + struct.pack("<Q", len(item)) + items


def pair(key: str | bytes, item: Any) -> bytes:
    return string(key) + value(item)


def tensor(
    name: str | bytes,
    sizes: Sequence[int],
    kind: int = 0,
    offset: int = 0,
    dimensions: int | None = None,
) -> bytes:
    """A line of the tensor table; sizes from the fastest axis."""
    count = len(sizes) if dimensions is None else dimensions
    return string(name) + struct.pack(f"<I{len(sizes)}QIQ", count, *sizes, kind, offset)


def file(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    pair_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file; counts as they are unless they are given."""
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(pairs) if pair_count is None else pair_count,
    )
    header = magic + struct.pack("<IQQ", version, *counts) + b"".join([*pairs, *tensors])
    return header + b"\0" * (-len(header) % alignment) + data


def pairs(values: Mapping[str, Any]) -> list[bytes]:
    return [pair(key, item) for key, item in values.items() if item is not None]


LLAMA = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 16,
    "llama.embedding_length": 4,
    "llama.feed_forward_length": 4,
    "llama.attention.head_count": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}

_TENSORS = {
    "token_embd.weight": (4, 4),
    "output_norm.weight": (4,),
    "blk.0.attn_norm.weight": (4,),
    "blk.0.ffn_norm.weight": (4,),
    "blk.0.attn_q.weight": (4, 4),
    "blk.0.attn_k.weight": (4, 4),
    "blk.0.attn_v.weight": (4, 4),
    "blk.0.attn_output.weight": (4, 4),
    "blk.0.ffn_gate.weight": (4, 4),
    "blk.0.ffn_up.weight": (4, 4),
    "blk.0.ffn_down.weight": (4, 4),
}

TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["<s>", "a", "b", "ab"],
    "tokenizer.ggml.token_type": [3, 1, 1, 1],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.add_bos_token": True,
}

SENTENCEPIECE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<s>", "▁", "a", "▁a"],
    "tokenizer.ggml.scores": [0.0, -1.0, -2.0, -3.0],
    "tokenizer.ggml.token_type": [3, 1, 1, 1],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.unknown_token_id": 0,
}


def model(
    values: Mapping[str, Any] | None = None, extra: Mapping[str, tuple[int, ...]] | None = None
) -> bytes:
    """A llama of one block and four channels, its weights 1; more or other values and tensors.

    A value of None takes the key away.
    """
    table, offset = [], 0
    for name, sizes in (_TENSORS | dict(extra or {})).items():
        table.append(tensor(name, sizes, offset=offset))
        offset += 64  # 16 floats at most, in units of 32
    data = struct.pack("<f", 1.0) * (offset // 4)
    return file(pairs(LLAMA | dict(values or {})), table, data)


def imatrix() -> bytes:
    """Sums and count of one layer."""
    table = [
        tensor("blk.0.ffn_up.weight.in_sum2", (4, 1)),
        tensor("blk.0.ffn_up.weight.counts", (1, 1), offset=32),
    ]
    data = struct.pack("<4f", 1, 2, 3, 4) + b"\0" * 16 + struct.pack("<f", 2)
    return file(pairs({"general.type": "imatrix", "imatrix.datasets": ["text"]}), table, data)
