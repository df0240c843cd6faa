"""GGUF files as llama.cpp's conversion makes them of models of other architectures than llama's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import gguf
import numpy as np
from models.described import described_tensors
from models.tiny_gguf import add_value, interleaved
from numpy.typing import NDArray

from numbacalib.models import ModelConfig
from numbacalib.models.gguf_architectures import GGUF_ARCHITECTURES

BEGINNINGS = ("", "gpt_neox.", "transformer.")
"""Of names that files of a base model leave out."""


class Case(NamedTuple):
    """A Hugging Face configuration, and what its GGUF file has beside the keys of all."""

    config: dict[str, Any]
    keys: Mapping[str, Any] = MappingProxyType({})
    tensors: Mapping[str, NDArray[Any]] = MappingProxyType({})


def base_of(name: str) -> str:
    return name if name in GGUF_ARCHITECTURES else base_of(name.rpartition("-")[0])


def merged(tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Put experts' tensors into one a layer, by the names that the ``gguf`` package maps."""
    found: dict[str, list[NDArray[Any]]] = {}
    for name, values in tensors.items():
        own = re.sub(r"\.experts\.\d+\.", ".experts.", name)
        own = re.sub(
            r"model\.(layers\.\d+)\.block_sparse_moe\.experts", r"\1.feed_forward.experts", own
        )
        found.setdefault(own, []).append(values)
    return {
        name: np.stack(values) if ".experts." in name else values[0]
        for name, values in found.items()
    }


def as_converted(
    config: ModelConfig, tensors: Mapping[str, NDArray[Any]], *, whole: bool
) -> dict[str, NDArray[Any]]:
    """Change what llama.cpp's converter changes of one tensor by itself."""
    found: dict[str, NDArray[Any]] = {}
    for name, values in tensors.items():
        if name.endswith("sinks"):
            found[f"{name}.weight"] = values
        elif config.architecture.transposed and ".c_" in name and values.ndim == 2:
            found[name] = values.T
        elif "attention.query_key_value" in name:
            heads = values.reshape(config.num_kv_heads, -1, config.head_dim, *values.shape[1:])
            parts = heads[:, :-2], heads[:, -2], heads[:, -1]
            found[name] = np.concatenate([each.reshape(-1, *values.shape[1:]) for each in parts])
        elif name.endswith("kv_b_proj.weight") and not whole:
            heads = values.reshape(config.num_heads, 8 + 10, -1)
            found[name.replace("kv_b", "k_b")] = heads[:, :8].swapaxes(1, 2)
            found[name.replace("kv_b", "v_b")] = heads[:, 8:]
        elif config.model_type == "glm4v_text" and name.split(".")[-2] in ("q_proj", "k_proj"):
            heads = values.reshape(-1, 16, *values.shape[1:])  # of which 8 dimensions turn
            parts = heads[:, :8:2], heads[:, 1:8:2], heads[:, 8:]
            found[name] = np.concatenate(parts, axis=1).reshape(values.shape)
        else:
            found[name] = values
    return found


def write(path: Path, name: str, config: dict[str, Any], case: Case) -> None:
    """Write what llama.cpp's conversion makes of a model; names are those of the ``gguf`` package."""
    name = base_of(name)
    read = ModelConfig.from_hf(config)
    writer = gguf.GGUFWriter(path, name)
    keys = {
        "block_count": read.num_layers,
        "context_length": read.max_position_embeddings,
        "embedding_length": read.hidden_size,
        "feed_forward_length": read.intermediate_size,
        "attention.head_count": read.num_heads,
        "attention.head_count_kv": read.num_kv_heads,
        "attention.key_length": read.head_dim,
        "attention.value_length": read.head_dim,
        "rope.freq_base": read.rope_theta,
    }
    kind = "" if read.architecture.norm == "layer" else "rms_"
    keys[f"attention.layer_norm_{kind}epsilon"] = read.rms_norm_eps
    for key, value in {**keys, **case.keys}.items():
        add_value(writer, f"{name}.{key}", value)
    (architecture,) = [a for a, known in gguf.MODEL_ARCH_NAMES.items() if known == name]
    names = gguf.get_tensor_name_map(architecture, read.num_layers)
    tensors = as_converted(
        read, described_tensors(read), whole="attention.key_length_mla" not in case.keys
    )
    for theirs, values in merged(tensors).items():
        stored = values
        if name in ("gemma", "gemma2", "gemma3", "nemotron") and theirs.endswith("norm.weight"):
            stored = values + np.float32(1)
        projection = theirs.split(".")[-2]
        permuted = name in ("arcee", "granite", "granitemoe", "llama", "mistral3", "smollm3")
        if permuted and projection in ("q_proj", "k_proj"):
            heads = read.num_heads if projection == "q_proj" else read.num_kv_heads
            stored = interleaved(values, heads)
        if theirs.endswith(("e_score_correction_bias", "expert_bias")):
            writer.add_tensor(f"blk.{theirs.split('.')[2]}.exp_probs_b.bias", stored.ravel())
            continue
        if theirs.endswith("shared_expert_gate.weight"):
            stored = values[0]
        known = (names.get_name(f"{first}{theirs}", (".weight", ".bias")) for first in BEGINNINGS)
        writer.add_tensor(next(filter(None, known)), stored)
    for tensor, values in case.tensors.items():
        writer.add_tensor(tensor, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
