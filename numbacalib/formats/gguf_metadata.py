"""Metadata of a GGUF file, made of a Hugging Face checkpoint's configuration.

Keys and values are those of llama.cpp's converter:
https://github.com/ggml-org/llama.cpp/tree/master/conversion (``base.py``, ``llama.py``, ``qwen.py``).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.rope import inverse_frequencies

if TYPE_CHECKING:
    from numbacalib.models import Checkpoint
    from numbacalib.models.config import ModelConfig

_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Names of the architectures in GGUF, by Hugging Face's ``model_type``."""
QUANTIZATION_VERSION = 2


def architecture_of(config: ModelConfig) -> str:
    """Return GGUF's name of a model's architecture.

    Raises
    ------
    ValueError
        If it has none that is written here.
    """
    if config.model_type not in _ARCHITECTURES:
        raise ValueError(
            f"model_type: expected {', '.join(_ARCHITECTURES)} in GGUF, got {config.model_type!r}"
        )
    return _ARCHITECTURES[config.model_type]


def model_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return all that does not depend on the tokenizer and on how weights are stored.

    Raises
    ------
    ValueError
        If the model has an option that GGUF has no key for.
    """
    config = checkpoint.config
    architecture = architecture_of(config)
    options: dict[str, Any] = {
        "block_count": config.num_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.freq_base": float(config.rope_theta),
    }
    if architecture == "llama":
        options["vocab_size"] = config.vocab_size
        options["rope.dimension_count"] = config.head_dim
    options |= _window(config) | _scaling(config)
    head = {"general.architecture": architecture, "general.type": "model"}
    head["general.name"] = checkpoint.path.resolve().name
    return head | {f"{architecture}.{key}": value for key, value in options.items()}


def rope_divisors(config: ModelConfig) -> NDArray[np.float32] | None:
    """Divisors of the rotary frequencies, which GGUF keeps as a tensor: Llama 3's scaling."""
    if config.rope_scaling["rope_type"] != "llama3":
        return None
    scaled, _ = inverse_frequencies(config.rope, 1)
    exponents = -np.arange(0, config.head_dim, 2) / config.head_dim
    return (config.rope_theta**exponents / scaled).astype(np.float32)


def _window(config: ModelConfig) -> dict[str, Any]:
    windows = {window for window in config.sliding_windows if window is not None}
    if not windows:
        return {}
    if config.model_type != "mistral" or len(windows) > 1 or None in config.sliding_windows:
        raise ValueError("sliding_window: expected none, or a mistral's, in GGUF")
    return {"attention.sliding_window": windows.pop()}


def _scaling(config: ModelConfig) -> dict[str, Any]:
    """Rotary scaling; llama.cpp has no dynamic one."""
    given = config.rope_scaling
    kind = given["rope_type"]
    if kind in ("default", "llama3"):
        return {}
    if kind == "linear":
        return {"rope.scaling.type": kind, "rope.scaling.factor": float(given["factor"])}
    if kind != "yarn" or not given.get("truncate", True):
        raise ValueError(f"rope_scaling: expected linear, llama3 or truncated yarn, got {kind!r}")
    factor = float(given["factor"])
    options = {
        "rope.scaling.type": kind,
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": int(given["original_max_position_embeddings"]),
    }
    for key in ("beta_fast", "beta_slow"):
        if given.get(key):
            options[f"rope.scaling.yarn_{key}"] = float(given[key])
    _, attention = inverse_frequencies(config.rope, 1)
    # llama.cpp multiplies by YaRN's own, arXiv:2309.00071, equation 22
    own = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    if not math.isclose(attention, own):
        options["rope.scaling.attn_factor"] = attention / own
    return options
