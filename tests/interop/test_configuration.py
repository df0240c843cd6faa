"""Which configuration and which weights count: as in transformers, by its own loaders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models.tiny import random_tokens, tiny_config, tiny_tensors, write_tiny_checkpoint
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from numbacalib.models import Decoder, ModelConfig, open_checkpoint

LINEAR = {"rope_type": "linear", "factor": 2.0}
YARN = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}
THETA = {"rope_type": "default", "rope_theta": 5e5}
KINDS = ["sliding_attention", "full_attention"]

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "both": {"rope_scaling": LINEAR, "rope_parameters": THETA},
    "empty-scaling": {"rope_scaling": {}, "rope_parameters": THETA},
    "scaling-alone": {"rope_scaling": YARN},
    "both-thetas": {"rope_parameters": THETA, "rope_theta": 2e4},
    "theta-within-scaling": {"rope_scaling": LINEAR | {"rope_theta": 3e4}, "rope_theta": 2e4},
    "original-beside": {"rope_scaling": YARN, "original_max_position_embeddings": 64},
    "type-and-rope-type": {"rope_scaling": LINEAR | {"type": "yarn"}},
    "no-theta": {"rope_theta": ...},
    "swish": {"hidden_act": "swish"},
    "mistral-layer-types": {"model_type": "mistral", "sliding_window": 4, "layer_types": KINDS},
    "mistral-default-window": {"model_type": "mistral", "sliding_window": ...},
    "qwen2-window-off": {"model_type": "qwen2", "sliding_window": 4, "max_window_layers": 0},
    "qwen3-layer-types": {
        "model_type": "qwen3",
        "sliding_window": 4,
        "use_sliding_window": True,
        "layer_types": KINDS,
    },
    "qwen2-null-kv-heads": {"model_type": "qwen2", "num_key_value_heads": None},
    "llama-no-kv-heads": {"num_key_value_heads": ...},
    "qwen2-no-head-dim": {"model_type": "qwen2", "head_dim": None},
}


def written(directory: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Write config.json; an Ellipsis leaves a key out. Return its contents."""
    config = tiny_config(**overrides)
    config = {key: value for key, value in config.items() if value is not ...}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    return config


@pytest.mark.parametrize("overrides", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_configurations_mean_the_same(tmp_path: Path, overrides: dict[str, Any]) -> None:
    config = written(tmp_path, overrides)
    ours, theirs = ModelConfig.from_hf(config), AutoConfig.from_pretrained(tmp_path)
    theirs.standardize_rope_params()  # as every rotary embedding does before it computes
    rope = dict(theirs.rope_parameters)
    rope.pop("type", None)
    assert ours.rope_theta == rope.pop("rope_theta")
    assert ours.rope_scaling == rope
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * 2
    window = getattr(theirs, "sliding_window", None)
    expected = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    assert ours.sliding_windows == expected


def assert_same_logits(directory: Path) -> Any:
    """Compare the logits of one sequence, and return transformers' model."""
    tokens = random_tokens(40)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    decoder = Decoder(open_checkpoint(directory))
    ours = decoder.logits(decoder.forward(tokens))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
    return model


@pytest.mark.parametrize(
    "name",
    ["both", "scaling-alone", "original-beside", "swish", "mistral-layer-types", "no-theta"],
)
def test_logits_follow(tmp_path: Path, name: str) -> None:
    config = written(tmp_path, CONFIGURATIONS[name])
    save_file(tiny_tensors(config), tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_same_logits(tmp_path)


@pytest.mark.parametrize("shards", [1, 2])
def test_the_same_files_count(tmp_path: Path, shards: int) -> None:
    """Beside other weights, and beside an index that ``model.safetensors`` goes before."""
    if shards == 1:
        write_tiny_checkpoint(tmp_path, shards=2, seed=9)
    write_tiny_checkpoint(tmp_path, shards=shards)
    stray = tiny_tensors(tiny_config(), seed=8)
    save_file(stray, tmp_path / "zzz.safetensors", metadata={"format": "pt"})
    model = assert_same_logits(tmp_path)
    expected = tiny_tensors(tiny_config())["lm_head.weight"]
    np.testing.assert_array_equal(model.lm_head.weight.detach().numpy(), expected)


def test_names_of_a_base_model_and_old_tables(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, tie_word_embeddings=True)
    file = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(file).items()}
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(8, np.float32)
    save_file(tensors, file, metadata={"format": "pt"})
    assert_same_logits(tmp_path)


def test_a_tied_head_of_its_own_counts(tmp_path: Path) -> None:
    """As in transformers 5; transformers 4 and vLLM take the embeddings."""
    write_tiny_checkpoint(tmp_path, tie_word_embeddings=True)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    table = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": table + 1}, file, metadata={"format": "pt"})
    model = assert_same_logits(tmp_path)
    np.testing.assert_array_equal(model.lm_head.weight.detach().numpy(), table + 1)
    save_file(tensors | {"lm_head.weight": table.copy()}, file, metadata={"format": "pt"})
    assert_same_logits(tmp_path)


def test_tensors_that_the_configuration_denies_do_not_count(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    file = tmp_path / "model.safetensors"
    denied = {
        "model.layers.0.self_attn.q_proj.bias": np.ones(64, np.float32),
        "model.layers.2.input_layernorm.weight": np.ones(64, np.float32),
    }
    save_file(load_file(file) | denied, file, metadata={"format": "pt"})
    assert_same_logits(tmp_path)


@pytest.mark.parametrize("kind", ["gemma3_text", "llama", "mistral"])
def test_sizes_that_a_text_config_leaves_out(kind: str) -> None:
    """As files of transformers 4 do, which hold what differs from the class."""
    theirs = AutoConfig.for_model(kind)
    config = {"model_type": "mistral3", "text_config": {"model_type": kind}}
    ours = ModelConfig.from_hf(config)
    assert ours.vocab_size == theirs.vocab_size
    assert (ours.hidden_size, ours.intermediate_size) == (
        theirs.hidden_size,
        theirs.intermediate_size,
    )
    assert (ours.num_layers, ours.num_heads, ours.num_kv_heads) == (
        theirs.num_hidden_layers,
        theirs.num_attention_heads,
        theirs.num_key_value_heads,
    )
