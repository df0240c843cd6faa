"""Fixtures of the model tests: the glassllm wheel, and its model as a Hugging Face checkpoint."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from numbacalib.demo.wheels import fetch_wheel

_SHA256 = "1611801c031d0fc300dc89d3c07cd6be56dc1784e38e24422b2242d0761a333b"


class Glass(NamedTuple):
    """glassllm's own model, and the same weights in a directory that we read."""

    model: Any
    directory: Path


@pytest.fixture(scope="session")
def glassllm_wheel() -> Path:
    """The wheel of glassllm 0.1.0, downloaded once into the user's cache directory."""
    return fetch_wheel("glassllm", "0.1.0", _SHA256)


@pytest.fixture(scope="session")
def glass(glassllm_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Glass:
    """A 0.85M-parameter decoder with its own NumPy forward pass to compare with."""
    sys.path.insert(0, str(glassllm_wheel))  # a wheel of pure Python imports as it is
    try:
        model, _ = importlib.import_module("glassllm").load_pretrained("en")
    finally:
        sys.path.remove(str(glassllm_wheel))
    directory = tmp_path_factory.mktemp("glassllm")
    weights = {name: tensor.data for name, tensor in model.named_parameters().items()}
    sizes = model.cfg
    config = {
        "model_type": "llama",
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.d_model,
        "intermediate_size": weights["blocks.0.ffn.W1"].shape[1],
        "num_hidden_layers": sizes.n_layers,
        "num_attention_heads": sizes.n_heads,
        "num_key_value_heads": sizes.n_kv_heads,
        "max_position_embeddings": sizes.max_len,
        "rms_norm_eps": sizes.eps,
        "rope_theta": sizes.rope_base,
        "tie_word_embeddings": True,
    }
    (directory / "config.json").write_text(json.dumps(config))
    save_file(_hf_tensors(weights, sizes), directory / "model.safetensors")
    return Glass(model, directory)


def _hf_tensors(weights: dict[str, NDArray[Any]], sizes: Any) -> dict[str, NDArray[Any]]:
    names = {
        "attn.W_Q": "self_attn.q_proj",
        "attn.W_K": "self_attn.k_proj",
        "attn.W_V": "self_attn.v_proj",
        "attn.W_O": "self_attn.o_proj",
        "ffn.W1": "mlp.gate_proj",
        "ffn.W3": "mlp.up_proj",
        "ffn.W2": "mlp.down_proj",
        "norm1.gamma": "input_layernorm",
        "norm2.gamma": "post_attention_layernorm",
    }
    tensors = {
        "model.embed_tokens.weight": weights["E"],
        "model.norm.weight": weights["norm_f.gamma"],
    }
    for layer in range(sizes.n_layers):
        for theirs, ours in names.items():
            # Theirs are [K, M], and their rotary embedding turns neighbouring dimensions.
            weight = weights[f"blocks.{layer}.{theirs}"].T
            if theirs in ("attn.W_Q", "attn.W_K"):
                heads = sizes.n_heads if theirs == "attn.W_Q" else sizes.n_kv_heads
                pairs = weight.reshape(heads, -1, 2, weight.shape[1])
                weight = pairs.swapaxes(1, 2).reshape(weight.shape)
            tensors[f"model.layers.{layer}.{ours}.weight"] = np.ascontiguousarray(
                weight, dtype=np.float16
            )
    return tensors
