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
from numbacalib.models.delta_net import DeltaNet
from numbacalib.models.gguf_architectures import GGUF_ARCHITECTURES

BEGINNINGS = ("", "gpt_neox.", "transformer.")
"""Of names that files of a base model leave out."""


ELSEWHERE = {"router.scale": "ffn_gate_inp.scale", "router.per_expert_scale": "ffn_down_exps.scale"}
"""Tensors that the converter names itself."""
MINUS_1 = (
    *("gemma", "gemma2", "gemma3", "nemotron"),
    *("qwen3next", "qwen35", "qwen35moe"),
)
"""Architectures with norms of 1 + w."""
PERMUTED = (
    *("arcee", "granite", "granitehybrid", "granitemoe", "llama", "mistral3"),
    *("nemotron_h", "nemotron_h_moe", "smollm3"),
)
"""Architectures whose query and key rows are stored as interleaved rotary pairs."""


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
            r"model\.(layers\.\d+)\.(?:block_sparse_moe\.experts|feed_forward\.experts(?=\.w))",
            r"\1.feed_forward.experts",
            own,
        )
        own = re.sub(r"backbone\.(layers\.\d+)\.mixer\.experts", r"model.\1.mlp.experts", own)
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
        if ".linear_attn." in name:
            found |= converted_delta(config, name, values)
        elif ".mamba." in name or ".mixer." in name:
            found |= converted_state_space(config, name, values)
        elif name.endswith("conv.conv.weight"):
            found[name] = values[:, 0]
        elif name.endswith("shared_mlp.input_linear.weight"):
            for role, rows in zip(("gate", "up"), np.split(values, 2), strict=True):
                found[name.replace("input_linear", role)] = rows
        elif name.endswith("sinks"):
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


def converted_state_space(
    config: ModelConfig, name: str, values: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    """Convert a tensor of Mamba 2, or of another mixer: only decays and shapes of Mamba 2 change."""
    assert config.state_space is not None
    end = re.split(r"\.(?:mamba|mixer)\.", name)[1]
    if end == "conv1d.weight":
        values = values[:, 0]
    elif end == "A_log":
        values = -np.exp(values)[:, None]
    elif end == "D":
        values = values[:, None]
    elif end == "norm.weight":
        values = values.reshape(config.state_space.groups, -1)
    return {name.replace("dt_bias", "dt_proj.bias"): values}


def converted_delta(
    config: ModelConfig, name: str, values: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    """Change a tensor of a gated delta net: the order of heads of values, decays, shapes."""
    delta, end = config.delta, name.rpartition("linear_attn.")[2]
    assert delta is not None
    share = delta.value_heads // delta.key_heads
    if end == "in_proj_qkvz.weight":  # by head of keys: queries, it, its values, their gates
        runs: dict[str, list[NDArray[Any]]] = {part: [] for part in "qkvz"}
        sizes = {"q": delta.key_dim, "k": delta.key_dim}
        rest = values
        for _ in range(delta.key_heads):
            for part, own in runs.items():
                size = sizes.get(part, share * delta.value_dim)
                own.append(rest[:size])
                rest = rest[size:]
        mixed = np.concatenate([*runs["q"], *runs["k"], *runs["v"]])
        return {
            name.replace("in_proj_qkvz", "in_proj_qkv"): mixed,
            name.replace("in_proj_qkvz", "in_proj_z"): np.concatenate(runs["z"]),
        }
    if end == "A_log":
        values = -np.exp(values)
    if end == "conv1d.weight":
        values = values[:, 0]
    if config.model_type != "qwen3_next":
        turned = [key * share + own for own in range(share) for key in range(delta.key_heads)]
        values = retiled(values, delta, end, turned)
    return {name.replace("dt_bias", "dt_proj.bias"): values}


def retiled(values: NDArray[Any], delta: DeltaNet, end: str, turned: list[int]) -> NDArray[Any]:
    """Put heads of values in the order of `turned`."""
    before, size = 0, 1
    if end in ("in_proj_qkv.weight", "conv1d.weight"):
        before, size = 2 * delta.keys, delta.value_dim
    elif end in ("in_proj_z.weight", "out_proj.weight"):
        size = delta.value_dim
    elif end == "norm.weight":
        return values
    order = [*range(before), *(before + head * size + i for head in turned for i in range(size))]
    return values[:, order] if end == "out_proj.weight" else values[order]


class _Writer(gguf.GGUFWriter):
    """Writes some tensors as ones of another shape, by names with or without ``.weight``, or not at all."""

    others: Mapping[str, tuple[int, ...] | None] = MappingProxyType({})

    def add_tensor(self, name: str, tensor: NDArray[Any], *given: Any, **options: Any) -> None:
        names = name, name.removesuffix(".weight")
        other = next((each for each in names if each in self.others), None)
        shape = tensor.shape if other is None else self.others[other]
        if shape is not None:
            values = tensor if other is None else np.arange(np.prod(shape), dtype=np.float32)
            super().add_tensor(name, values.reshape(shape), *given, **options)


def write(
    path: Path,
    name: str,
    config: dict[str, Any],
    case: Case,
    others: Mapping[str, tuple[int, ...] | None] = MappingProxyType({}),
) -> None:
    """Write what llama.cpp's conversion makes of a model; names are those of the ``gguf`` package.

    `others` are tensors that are to have another shape or to be left out.
    """
    name = base_of(name)
    read = ModelConfig.from_hf(config)
    writer = _Writer(path, name)
    writer.others = others
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
    tensors = merged(tensors)
    for theirs in [tensor for tensor in tensors if name == "gemma4" and ".experts.gate" in tensor]:
        both = tensors.pop(theirs), tensors.pop(theirs.replace("gate_proj", "up_proj"))
        tensors[theirs.replace("gate_proj", "gate_up_proj")] = np.concatenate(both, axis=1)
    for theirs, values in tensors.items():
        stored = values
        if name in MINUS_1 and theirs.endswith("norm.weight") and "linear_attn" not in theirs:
            stored = values + np.float32(1)
        projection = theirs.split(".")[-2]
        if name in PERMUTED and projection in ("q_proj", "k_proj"):
            heads = read.num_heads if projection == "q_proj" else read.num_kv_heads
            stored = interleaved(values, heads)
        if theirs.endswith(("e_score_correction_bias", "expert_bias")):
            writer.add_tensor(f"blk.{theirs.split('.')[2]}.exp_probs_b.bias", stored.ravel())
            continue
        if theirs.endswith("shared_expert_gate.weight"):
            stored = values[0]
        block = theirs.split(".")[2] if ".layers." in theirs else ""
        if name.startswith("granite") and ".shared_mlp." in theirs:
            role = projection.replace("output_linear", "down")
            end = "_shexp" if read.mixture else ""
            writer.add_tensor(f"blk.{block}.ffn_{role}{end}.weight", stored)
            continue
        end = next((end for end in ELSEWHERE if theirs.endswith(end)), None)
        if end is not None:
            writer.add_tensor(f"blk.{block}.{ELSEWHERE[end]}", stored)
            continue
        theirs = f"{theirs}.weight" if theirs.endswith("layer_scalar") else theirs
        known = (names.get_name(f"{first}{theirs}", (".weight", ".bias")) for first in BEGINNINGS)
        writer.add_tensor(next(filter(None, known)), stored)
    for tensor, values in case.tensors.items():
        writer.add_tensor(tensor, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
