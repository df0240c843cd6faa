"""Random checkpoints of a few thousand parameters, written the way transformers writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 320

TEXT = (
    "The quick brown fox jumps over the lazy dog. Numbers such as 3, 14 and 159 are split; "
    "so are words, spaces   and\nnew lines. A model this small has nothing to say about any of "
    "it, but its tokenizer should still give back what it was given, café and naïve included. "
)

# Float32 through two blocks of K <= 96 loses about 2e-6 of the logits' size; a wrong formula, far
# more than this.
RTOL = 2e-5

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def tiny_config(model_type: str = "llama", **overrides: Any) -> dict[str, Any]:
    """A ``config.json`` dictionary: 2 layers, 4 query heads on 2 key heads, K of 64 and 96."""
    config: dict[str, Any] = {
        "architectures": [_ARCHITECTURES.get(model_type, "UnknownForCausalLM")],
        "model_type": model_type,
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if model_type == "mistral":
        config["sliding_window"] = None
    return config | overrides


def tiny_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random weights for ``config``, by tensor name; norms near 1, biases small."""
    rng = np.random.default_rng(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = config["head_dim"]
    queries = config["num_attention_heads"] * head_dim
    keys = config["num_key_value_heads"] * head_dim
    kind = config["model_type"]
    wide = config.get("attention_bias", False) and kind in ("llama", "qwen3")
    biased = {
        "self_attn.q_proj": kind == "qwen2" or wide,
        "self_attn.k_proj": kind == "qwen2" or wide,
        "self_attn.v_proj": kind == "qwen2" or wide,
        "self_attn.o_proj": wide,
        "mlp.gate_proj": config.get("mlp_bias", False),
        "mlp.up_proj": config.get("mlp_bias", False),
        "mlp.down_proj": config.get("mlp_bias", False),
    }
    linears = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }

    def normal(*shape: int, scale: float) -> NDArray[np.float32]:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    def norm(size: int) -> NDArray[np.float32]:
        return 1 + normal(size, scale=0.1)

    tensors = {"model.embed_tokens.weight": normal(config["vocab_size"], hidden, scale=1.0)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors[prefix + "input_layernorm.weight"] = norm(hidden)
        tensors[prefix + "post_attention_layernorm.weight"] = norm(hidden)
        if kind == "qwen3":
            tensors[prefix + "self_attn.q_norm.weight"] = norm(head_dim)
            tensors[prefix + "self_attn.k_norm.weight"] = norm(head_dim)
        for name, (rows, columns) in linears.items():
            tensors[f"{prefix}{name}.weight"] = normal(rows, columns, scale=columns**-0.5)
            if biased[name]:
                tensors[f"{prefix}{name}.bias"] = normal(rows, scale=0.1)
    tensors["model.norm.weight"] = norm(hidden)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = normal(config["vocab_size"], hidden, scale=hidden**-0.5)
    return tensors


def tiny_tokenizer(vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """Byte-level BPE trained on `TEXT`; token 0 is ``<|endoftext|>``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def write_tiny_checkpoint(
    directory: str | Path,
    model_type: str = "llama",
    dtype: str = "float32",
    shards: int = 1,
    tokenizer: bool = True,
    seed: int = 0,
    **config_overrides: Any,
) -> Path:
    """Write a random checkpoint and return its directory.

    Parameters
    ----------
    directory
        Created where it does not exist.
    model_type
        "llama", "mistral", "qwen2" or "qwen3".
    dtype
        "float32", "float16" or "bfloat16".
    shards
        Number of safetensors files; more than one come with an index.
    tokenizer
        Whether to write ``tokenizer.json`` and ``tokenizer_config.json``.
    seed
        Of the weights.
    config_overrides
        Entries of ``config.json``, such as ``tie_word_embeddings=True``.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = tiny_config(model_type, torch_dtype=dtype, **config_overrides)
    (directory / "config.json").write_text(json.dumps(config))
    numpy_dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    tensors = {name: t.astype(numpy_dtype) for name, t in tiny_tensors(config, seed).items()}
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    else:
        _write_shards(directory, tensors, shards)
    if tokenizer:
        tiny_tokenizer().save(str(directory / "tokenizer.json"))
        (directory / "tokenizer_config.json").write_text(
            json.dumps(
                {
                    "tokenizer_class": "PreTrainedTokenizerFast",
                    "bos_token": "<|endoftext|>",
                    "eos_token": "<|endoftext|>",
                }
            )
        )
    return directory


def _write_shards(directory: Path, tensors: dict[str, NDArray[Any]], shards: int) -> None:
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[shard::shards])
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def random_tokens(*shape: int, seed: int = 1) -> NDArray[np.int64]:
    """Tokens of the tiny vocabulary."""
    return np.random.default_rng(seed).integers(0, VOCAB_SIZE, shape)


def assert_close(actual: Any, expected: Any) -> None:
    """Equal within `RTOL` of the largest expected value."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=RTOL * np.abs(expected).max())
