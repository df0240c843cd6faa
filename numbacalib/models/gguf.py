"""GGUF files, read as if they were Hugging Face checkpoints.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Our own reader instead of the
``gguf`` package's, which makes an array of every vocabulary entry and takes seconds to open a file.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from numbacalib.models.checkpoint import Checkpoint, TensorInfo
from numbacalib.models.config import MODEL_TYPES, ModelConfig
from numbacalib.models.gguf_names import hf_name
from numbacalib.models.gguf_tokenizer import build_tokenizer, tokenizer_config
from numbacalib.models.rope import inverse_frequencies
from numbacalib.models.tokenizer import named_errors
from numbacalib.runtime.extras import extra

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["GGUFCheckpoint"]

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

# Divisors of the rotary frequencies: how a file says that Llama 3's scaling applies.
_ROPE_DIVISORS = "rope_freqs.weight"


class _TensorType(NamedTuple):
    """A stored block: ``size`` values in one item of ``dtype``."""

    name: str
    size: int
    dtype: np.dtype[Any]


_TYPES = {
    0: _TensorType("F32", 1, np.dtype("<f4")),
    1: _TensorType("F16", 1, np.dtype("<f2")),
    2: _TensorType("Q4_0", 32, np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])),
    3: _TensorType(
        "Q4_1", 32, np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("nibbles", "u1", 16)])
    ),
    8: _TensorType("Q8_0", 32, np.dtype([("scale", "<f2"), ("codes", "i1", 32)])),
    30: _TensorType("BF16", 1, np.dtype(ml_dtypes.bfloat16)),
}

_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _ARRAY = 8, 9


class _Entry(NamedTuple):
    data: NDArray[Any]
    kind: _TensorType
    shape: tuple[int, ...]


class GGUFCheckpoint(Checkpoint):
    """A GGUF file of a Llama-family model, memory-mapped.

    Tensor types F32, F16, BF16, Q8_0, Q4_0 and Q4_1; the quantized ones are dequantized to float32
    each time `tensor` is called.

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
        try:
            self._metadata, entries = _read(np.memmap(path, dtype=np.uint8, mode="r").data)
            self._architecture = _architecture(self._metadata)
            divisors = entries.pop(_ROPE_DIVISORS, None)
            self._entries = {hf_name(name): entry for name, entry in entries.items()}
            self._hf_config = self._synthesise_config(divisors)
        except struct.error:
            raise ValueError(f"{path}: truncated, the header goes on beyond its end") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def info(self, name: str) -> TensorInfo:
        entry = self._entry(name)
        quantized = entry.kind.size > 1
        return TensorInfo(entry.shape, np.dtype(np.float32) if quantized else entry.kind.dtype)

    def tensor(self, name: str) -> NDArray[Any]:
        entry = self._entry(name)
        result = _dequantize(entry.data, entry.kind).reshape(entry.shape)
        projection = re.search(r"self_attn\.([qk])_proj\.", name)
        if projection and self._architecture == "llama":
            kv = projection[1] == "k"
            result = _unpermute(result, self.config.num_kv_heads if kv else self.config.num_heads)
        result.flags.writeable = False
        return result

    def hf_config(self) -> dict[str, Any]:
        return dict(json.loads(json.dumps(self._hf_config)))

    def tokenizer_files(self) -> dict[str, bytes]:
        config = json.dumps(tokenizer_config(self._metadata), indent=2, ensure_ascii=False)
        return {
            "tokenizer.json": self.tokenizer.to_str(pretty=True).encode(),
            "tokenizer_config.json": config.encode(),
        }

    @cached_property
    def tokenizer(self) -> Tokenizer:
        with extra("models"), named_errors(self.path):
            return build_tokenizer(self._metadata)

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise self._unknown(name) from None

    def _synthesise_config(self, rope_divisors: _Entry | None) -> dict[str, Any]:
        """The ``config.json`` that the model was converted from, as far as it matters."""

        def value(key: str, default: Any = None) -> Any:
            return self._metadata.get(f"{self._architecture}.{key}", default)

        def has(name: str) -> bool:
            return f"model.layers.0.{name}" in self._entries

        window = value("attention.sliding_window")
        model_type = self._architecture
        if window and model_type == "llama":  # mistral is "llama" in GGUF but for its window
            model_type = "mistral"
        heads = value("attention.head_count")
        embeddings = self._entries.get("model.embed_tokens.weight")
        config: dict[str, Any] = {
            "architectures": [_ARCHITECTURES[model_type]],
            "model_type": model_type,
            "vocab_size": embeddings.shape[0] if embeddings else value("vocab_size"),
            "hidden_size": value("embedding_length"),
            "intermediate_size": value("feed_forward_length"),
            "num_hidden_layers": value("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": value("attention.head_count_kv", heads),
            "head_dim": value("attention.key_length"),
            "hidden_act": "silu",
            "max_position_embeddings": value("context_length"),
            "rms_norm_eps": _shortest(value("attention.layer_norm_rms_epsilon", 1e-6)),
            "rope_theta": _shortest(value("rope.freq_base", 10000.0)),
            "tie_word_embeddings": "lm_head.weight" not in self._entries,
            "attention_bias": has("self_attn.q_proj.bias"),
            "mlp_bias": has("mlp.gate_proj.bias"),
            "sliding_window": window,
            "use_sliding_window": bool(window),
            "torch_dtype": self._dtype(),
        }
        for name in ("bos", "eos", "padding"):
            token = self._metadata.get(f"tokenizer.ggml.{name}_token_id")
            config[f"{name.removesuffix('ding')}_token_id"] = token
        config = {key: item for key, item in config.items() if item is not None}
        head_dim = ModelConfig.from_hf(config).head_dim
        if value("rope.dimension_count", head_dim) != head_dim:
            raise ValueError(
                f"rope.dimension_count: expected the whole head, {head_dim}, "
                f"got {value('rope.dimension_count')}"
            )
        scaling = _rope_scaling(value)
        if rope_divisors is not None:
            scaling = _llama3_scaling(config, _dequantize(*rope_divisors[:2]))
        if scaling:
            config["rope_scaling"] = scaling
        return config

    def _dtype(self) -> str:
        """The type that holds every matrix without loss."""
        types = {entry.kind.name for entry in self._entries.values() if len(entry.shape) == 2}
        narrow = {"F16": "float16", "BF16": "bfloat16"}
        return narrow.get(types.pop(), "float32") if len(types) == 1 else "float32"


def _read(data: memoryview) -> tuple[dict[str, Any], dict[str, _Entry]]:
    """Metadata and tensors of a GGUF file (versions 2 and 3, little-endian)."""
    if bytes(data[:4]) != b"GGUF":
        raise ValueError("not a GGUF file, the first four bytes differ")
    version, tensor_count, value_count = struct.unpack_from("<IQQ", data, 4)
    if version not in (2, 3):
        raise ValueError(f"expected GGUF version 2 or 3, got {version}")
    position = 24
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        key, position = _read_string(data, position)
        (kind,) = struct.unpack_from("<I", data, position)
        metadata[key], position = _read_value(data, position + 4, kind)

    headers = []
    for _ in range(tensor_count):
        name, position = _read_string(data, position)
        (dimensions,) = struct.unpack_from("<I", data, position)
        # The sizes run from the fastest axis: the reverse of NumPy's.
        *sizes, kind, offset = struct.unpack_from(f"<{dimensions}QIQ", data, position + 4)
        position += 16 + 8 * dimensions
        headers.append((name, tuple(reversed(sizes)), kind, offset))
    alignment = metadata.get("general.alignment", 32)
    start = -(-position // alignment) * alignment
    return metadata, {name: _map(data, start, name, *rest) for name, *rest in headers}


def _map(
    data: memoryview, start: int, name: str, shape: tuple[int, ...], kind: int, offset: int
) -> _Entry:
    if kind not in _TYPES:
        known = ", ".join(item.name for item in _TYPES.values())
        raise ValueError(f"{name}: expected a tensor of {known}, got GGML type {kind}")
    tensor_type = _TYPES[kind]
    if not shape or shape[-1] % tensor_type.size:
        raise ValueError(f"{name}: {tensor_type.name} rows hold multiples of 32, got {shape}")
    count = math.prod(shape) // tensor_type.size
    begin = start + offset
    end = begin + count * tensor_type.dtype.itemsize
    if end > len(data):
        raise ValueError(f"truncated, {name} ends at byte {end} and the file has {len(data)}")
    values = np.frombuffer(data[begin:end], dtype=tensor_type.dtype)
    return _Entry(values, tensor_type, shape)


def _read_string(data: memoryview, position: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, position)
    end = position + 8 + length
    if end > len(data):
        raise struct.error
    return str(data[position + 8 : end], "utf-8"), end


def _read_value(data: memoryview, position: int, kind: int) -> tuple[Any, int]:
    if kind == _STRING:
        return _read_string(data, position)
    if kind in _SCALARS:
        layout = "<" + _SCALARS[kind]
        return struct.unpack_from(layout, data, position)[0], position + struct.calcsize(layout)
    if kind != _ARRAY:
        raise ValueError(f"damaged header, there is no metadata type {kind}")
    item, count = struct.unpack_from("<IQ", data, position)
    position += 12
    if item in _SCALARS:
        layout = f"<{count}{_SCALARS[item]}"
        return list(struct.unpack_from(layout, data, position)), position + struct.calcsize(layout)
    values = []
    for _ in range(count):
        value, position = _read_value(data, position, item)
        values.append(value)
    return values, position


def _dequantize(data: NDArray[Any], kind: _TensorType) -> NDArray[Any]:
    """Flat values of stored blocks; the plain types as they are."""
    if kind.size == 1:
        return data[:]
    values = np.empty((len(data), kind.size), dtype=np.float32)
    if kind.name == "Q8_0":
        values[...] = data["codes"]
    else:
        # Low nibbles are a block's first half, high nibbles its second.
        values[:, :16] = data["nibbles"] & 15
        values[:, 16:] = data["nibbles"] >> 4
    if kind.name == "Q4_0":
        values -= 8
    values *= data["scale"].astype(np.float32)[:, None]
    if kind.name == "Q4_1":
        values += data["minimum"].astype(np.float32)[:, None]
    return values


def _unpermute(tensor: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of q or k back in Hugging Face order.

    GGUF's llama convention rotates rows ``(2i, 2i + 1)``, Hugging Face's ``(i, i + head_dim / 2)``.
    """
    paired = tensor.reshape(heads, -1, 2, *tensor.shape[1:])
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(tensor.shape)


def _architecture(metadata: Mapping[str, Any]) -> str:
    architecture = str(metadata.get("general.architecture"))
    if architecture not in MODEL_TYPES:
        raise ValueError(
            f"general.architecture: expected one of {', '.join(MODEL_TYPES)}, got {architecture!r}"
        )
    if metadata.get(f"{architecture}.expert_count"):
        raise ValueError("mixtures of experts are not supported")
    return architecture


def _shortest(value: float) -> float:
    """A float32 as the decimal it was written from: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))


def _rope_scaling(value: Any) -> dict[str, Any] | None:
    kind = value("rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise ValueError(f"rope.scaling.type: expected none, linear or yarn, got {kind!r}")
    scaling = {"rope_type": kind, "factor": _shortest(value("rope.scaling.factor", 1.0))}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = value(
            "rope.scaling.original_context_length", value("context_length")
        )
    return scaling


def _llama3_scaling(config: dict[str, Any], divisors: NDArray[Any]) -> dict[str, Any]:
    """The Llama 3 parameters whose frequency divisors are those in the file.

    The file holds the divisors only. Every release so far used the same bounds, so the largest
    divisor is all that is unknown; the others must then agree.
    """
    scaling = {
        "rope_type": "llama3",
        "factor": float(divisors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain, _ = inverse_frequencies(ModelConfig.from_hf(config), 1)
    scaled, _ = inverse_frequencies(ModelConfig.from_hf(config | {"rope_scaling": scaling}), 1)
    if not np.allclose(plain / scaled, divisors, rtol=1e-4):
        raise ValueError(f"{_ROPE_DIVISORS}: not the divisors of Llama 3's rotary scaling")
    return scaling
