"""Tiny models and their tokenizers as GGUF files, written with the ``gguf`` package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from models.tiny import tiny_tensors, tiny_tokenizer
from numpy.typing import NDArray

from numbacalib.models.gguf_metadata import Metadata

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    stem, suffix = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, stem = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[stem]}.{suffix}"
    return f"{NAMES[stem]}.{suffix}"


def interleaved(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows as GGUF's llama convention wants them: row 2i is i's, row 2i + 1 is i + d/2's."""
    size = len(weight) // heads
    order = [
        head * size + pair + half * size // 2
        for head in range(heads)
        for pair in range(size // 2)
        for half in (0, 1)
    ]
    return weight[order]


def write_gguf(
    path: Path,
    config: dict[str, Any],
    tensor_type: str = "F32",
    extra: dict[str, Any] | None = None,
    tensors: dict[str, NDArray[Any]] | None = None,
) -> dict[str, NDArray[Any]]:
    """Write a tiny model; return the tensors that a reader should see, by Hugging Face name."""
    architecture = config["model_type"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    for key, value in (extra or {}).items():
        add_value(writer, key, value)
    for name, tensor in (tensors or {}).items():
        writer.add_tensor(name, tensor)
    expected = {}
    for name, tensor in tiny_tensors(config).items():
        kind = gguf.GGMLQuantizationType[tensor_type if tensor.ndim == 2 else "F32"]
        stored = gguf.quantize(tensor, kind)
        expected[name] = gguf.dequantize(stored, kind).reshape(tensor.shape)
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            key = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            stored = interleaved(stored, config[key])
        writer.add_tensor(gguf_name(name), stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def metadata_of(values: dict[str, Any]) -> Metadata:
    """Values as they come from a file: arrays of numbers are NumPy's."""
    numbers = {
        key: np.array(value)
        for key, value in values.items()
        if isinstance(value, list) and value and not isinstance(value[0], str)
    }
    return Metadata(values | numbers)


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def tokenizer_metadata(pre: str = "gpt-2") -> dict[str, Any]:
    model = json.loads(tiny_tokenizer().to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] + [1] * (len(tokens) - 1),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
    }
