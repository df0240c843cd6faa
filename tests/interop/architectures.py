"""A tiny random checkpoint of every architecture, as transformers itself writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from interop.dense_variants import DENSE
from interop.expert_variants import SPARSE
from interop.older_variants import OLDER
from interop.wrapped_variants import WRAPPED
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
"""Of every model, where its variant does not say otherwise: K of 64 and 96, M of 32 to 320."""

VARIANTS = DENSE | OLDER | SPARSE
"""Overrides of `SIZES` by ``model_type``, with something after a hyphen for further variants."""

MINUS_1 = "gemma", "vaultgemma", "nemotron", "qwen3_next", "qwen3_5"
"""Those whose norms are of 1 + w, but for Gemma 4."""


def config_of(variant: str, **overrides: Any) -> Any:
    """The configuration of a variant, as transformers has it."""
    model_type = variant.partition("-")[0]
    if variant in WRAPPED:
        given = WRAPPED[variant]
        return AutoConfig.for_model(
            model_type, **given | {"text_config": SIZES | given["text_config"]}
        )
    return AutoConfig.for_model(model_type, **(SIZES | VARIANTS[variant] | overrides))


def save(
    directory: Path, variant: str, dtype: torch.dtype = torch.float32, **overrides: Any
) -> Any:
    """Write a model with weights large enough that every part shows in the logits, and return it."""
    torch.manual_seed(0)
    shards = overrides.pop("max_shard_size", "5GB")
    kind = AutoModelForImageTextToText if variant in WRAPPED else AutoModelForCausalLM
    model = kind.from_config(config_of(variant, **overrides)).eval()
    if dtype != torch.float32:  # which it is, but for tables of complex numbers
        model = model.to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                minus_1 = variant.startswith(MINUS_1) and not variant.startswith("gemma4")
                mean = 0.0 if minus_1 and "linear_attn" not in name else 1.0
                parameter.normal_(mean, 0.1)
            elif parameter.ndim == 1:
                parameter.normal_(0, 0.3)
            else:
                parameter.normal_(0, 1.5 * parameter.shape[-1] ** -0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.fill_(0.7)
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.2)
    model.save_pretrained(directory, max_shard_size=shards)
    if variant == "kimi_k25":
        _name_layers_as_published(directory / "model.safetensors")
    return model


def _name_layers_as_published(file: Path) -> None:
    """Give the decoder's layers their names: transformers 5.24 writes the tower's word for them."""
    theirs, named = "language_model.model.blocks.", "language_model.model.layers."
    tensors = load_file(file).items()
    renamed = {
        named + name.removeprefix(theirs) if name.startswith(theirs) else name: tensor
        for name, tensor in tensors
    }
    save_file(renamed, file, metadata={"format": "pt"})
