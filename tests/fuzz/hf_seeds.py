"""Hugging Face directories of one tiny layer, plain and packed: what the damage is done to."""

from __future__ import annotations

import copy
import json
import struct
from pathlib import Path
from typing import Any

import safetensors_bytes

_SIZES = {
    "vocab_size": 4,
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 2,
    "max_position_embeddings": 16,
}
_LINEARS = {
    "self_attn.q_proj": (4, 4),
    "self_attn.k_proj": (2, 4),
    "self_attn.v_proj": (2, 4),
    "self_attn.o_proj": (4, 4),
    "mlp.gate_proj": (4, 4),
    "mlp.up_proj": (4, 4),
    "mlp.down_proj": (4, 4),
}
_CONFIGS: tuple[dict[str, Any], ...] = (
    {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    {
        "model_type": "mistral",
        "sliding_window": 4,
        "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 100.0},
    },
    {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 4,
        "layer_types": ["full_attention"],
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 2.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
        },
    },
)
_TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {
            "id": 0,
            "content": "<s>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
    ],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": "\\s+"},
                "behavior": "Isolated",
                "invert": False,
            },
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": True,
            },
        ],
    },
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    },
    "decoder": {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    },
    "model": {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3},
        "merges": [["a", "b"]],
    },
}
_QUANTIZATION = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear", "re:.*down_proj"],
            "weights": {
                "num_bits": 4,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": 4,
                "dynamic": False,
            },
            "input_activations": None,
            "output_activations": None,
        }
    },
}


def _zeros(dtype: str, *shape: int) -> tuple[str, list[int], bytes]:
    size = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "I64": 8}[dtype]
    count = 1
    for length in shape:
        count *= length
    return dtype, list(shape), bytes(size * count)


def _hf_tensors(biased: bool, packed: bool) -> dict[str, tuple[str, list[int], bytes]]:
    layer = "model.layers.0."
    tensors = {
        "model.embed_tokens.weight": _zeros("F32", 4, 4),
        "model.norm.weight": _zeros("F32", 4),
        "lm_head.weight": _zeros("BF16", 4, 4),
        f"{layer}input_layernorm.weight": _zeros("F32", 4),
        f"{layer}post_attention_layernorm.weight": _zeros("F32", 4),
    }
    for name, shape in _LINEARS.items():
        if biased and name[-6:-5] in "qkv":
            tensors[f"{layer}{name}.bias"] = _zeros("F32", shape[0])
        if not packed:
            tensors[f"{layer}{name}.weight"] = _zeros("F32", *shape)
            continue
        tensors[f"{layer}{name}.weight_packed"] = _zeros("I32", shape[0], 1)
        tensors[f"{layer}{name}.weight_scale"] = _zeros("F32", shape[0], 1)
        tensors[f"{layer}{name}.weight_shape"] = ("I64", [2], struct.pack("<2q", *shape))
    return tensors


def hf_seed(directory: Path, form: int) -> Path:
    """Three configurations, each in one file and with an index."""
    config = _SIZES | _CONFIGS[form % 3]
    weights = safetensors_bytes.file(_hf_tensors(form % 3 == 2, packed=False))
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text(json.dumps(_TOKENIZER))
    if form < 3:
        (directory / "model.safetensors").write_bytes(weights)
        return directory
    shard = "model-00001-of-00001.safetensors"
    (directory / shard).write_bytes(weights)
    names = _hf_tensors(form % 3 == 2, packed=False)
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard)}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def packed_seed(directory: Path, form: int) -> Path:
    """Layers that compressed-tensors packed, on the symmetric and the asymmetric grid."""
    hf_seed(directory, 0)
    quantization = copy.deepcopy(_QUANTIZATION)
    tensors = _hf_tensors(biased=False, packed=True)
    if form:
        quantization["config_groups"]["group_0"]["weights"]["symmetric"] = False
        for name, shape in _LINEARS.items():
            tensors[f"model.layers.0.{name}.weight_zero_point"] = _zeros(
                "I32", -(-shape[0] // 8), 1
            )
    config = _SIZES | _CONFIGS[0] | {"quantization_config": quantization}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").write_bytes(safetensors_bytes.file(tensors))
    return directory


_WIDE = 32
_OTHERS: tuple[dict[str, Any], ...] = (
    {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "sym": False},
    {"quant_method": "awq", "bits": 4, "group_size": -1, "version": "gemm", "zero_point": True},
    {"bits": 3, "group_size": 32, "mode": "affine"},
)


def other_seed(directory: Path, form: int) -> Path:
    """Layers of 32 x 32 as GPTQ, AWQ and MLX store them."""
    hf_seed(directory, 0)
    sizes = {"hidden_size": _WIDE, "intermediate_size": _WIDE, "head_dim": _WIDE // 2}
    config = _SIZES | sizes | {"num_key_value_heads": 2, "model_type": "llama"}
    vectors = ("input_layernorm", "post_attention_layernorm")
    tensors = {
        "model.embed_tokens.weight": _zeros("F32", 4, _WIDE),
        "model.norm.weight": _zeros("F32", _WIDE),
        "lm_head.weight": _zeros("F32", 4, _WIDE),
    } | {f"model.layers.0.{name}.weight": _zeros("F32", _WIDE) for name in vectors}
    parts: dict[str, tuple[str, list[int], bytes]]
    if form == 0:
        parts = {"qweight": _zeros("I32", 4, _WIDE), "qzeros": _zeros("I32", 1, 4)}
        parts |= {"scales": _zeros("F16", 1, _WIDE), "g_idx": _zeros("I32", _WIDE)}
    elif form == 1:
        parts = {"qweight": _zeros("I32", _WIDE, 4), "qzeros": _zeros("I32", 1, 4)}
        parts |= {"scales": _zeros("F16", 1, _WIDE)}
    else:
        ones = "F16", [_WIDE, 1], struct.pack("<e", 1.0) * _WIDE
        parts = {"weight": _zeros("U32", _WIDE, 3), "scales": ones, "biases": ones}
    for name in _LINEARS:
        tensors |= {f"model.layers.0.{name}.{part}": tensor for part, tensor in parts.items()}
    key = "quantization" if form == 2 else "quantization_config"
    (directory / "config.json").write_text(json.dumps(config | {key: _OTHERS[form]}))
    (directory / "model.safetensors").write_bytes(safetensors_bytes.file(tensors))
    return directory
