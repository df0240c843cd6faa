"""What a decoder needs to know about its architecture, read from a Hugging Face ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["MODEL_TYPES", "ModelConfig"]

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""The architectures that `ModelConfig` and the forward pass know."""

_REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
)
# What the architecture's own configuration class takes where a file leaves an option out.
_MAX_POSITIONS = {"llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768}
_KV_HEADS = {"mistral": 8}
_HEAD_DIM = {"qwen3": 128}


@dataclass(frozen=True)
class ModelConfig:
    """Shape and options of a Llama-family decoder.

    Attributes
    ----------
    model_type : str
        One of `MODEL_TYPES`.
    hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim, vocab_size : int
        Sizes; ``num_heads`` is a multiple of ``num_kv_heads`` and ``head_dim`` is even.
    max_position_embeddings : int
        Longest sequence, in tokens, that the model is meant for.
    rms_norm_eps : float
        Added to the mean square in every RMSNorm.
    rope_theta : float
        Base of the rotary frequencies.
    rope_scaling : Mapping
        Parameters of the rotary scaling, with ``rope_type``; ``{"rope_type": "default"}`` for none.
    tie_word_embeddings : bool
        Whether the output head is the embedding table.
    attention_bias, output_bias, mlp_bias : bool
        Biases of q/k/v, of the attention's output projection, and of the three MLP projections.
    qk_norm : bool
        RMSNorm over each head of the queries and keys, before the rotary embedding (qwen3).
    sliding_windows : tuple of (int or None)
        For each layer, how many positions a token attends to, itself included; None for all.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] = field(default_factory=lambda: {"rope_type": "default"})
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_windows: tuple[int | None, ...] = ()

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read a ``config.json`` dictionary, of transformers 4 or 5.

        Raises
        ------
        ValueError
            For an architecture or option that the forward pass does not know, a missing key, or
            sizes that do not fit together.
        """
        model_type = config.get("model_type")
        if model_type not in MODEL_TYPES:
            raise ValueError(
                f"model_type: expected one of {', '.join(MODEL_TYPES)}, got {model_type!r}"
            )
        missing = [key for key in _REQUIRED if config.get(key) is None]
        if missing:
            raise ValueError(f"config: a {model_type} needs {', '.join(missing)}, which it lacks")
        activation = config.get("hidden_act", "silu")
        if activation != "silu":
            raise ValueError(f"hidden_act: expected 'silu', got {activation!r}")

        hidden_size = _integer(config, "hidden_size")
        num_heads = _integer(config, "num_attention_heads")
        num_layers = _integer(config, "num_hidden_layers")
        head_dim = _HEAD_DIM.get(model_type, hidden_size // num_heads)
        max_positions = _integer(config, "max_position_embeddings", _MAX_POSITIONS[model_type])
        bias = bool(config.get("attention_bias", False)) and model_type in ("llama", "qwen3")
        theta, scaling = _rope(config, max_positions)
        result = cls(
            model_type=model_type,
            hidden_size=hidden_size,
            intermediate_size=_integer(config, "intermediate_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=_integer(
                config, "num_key_value_heads", _KV_HEADS.get(model_type, num_heads)
            ),
            head_dim=_integer(config, "head_dim", head_dim),
            vocab_size=_integer(config, "vocab_size"),
            max_position_embeddings=max_positions,
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope_theta=theta,
            rope_scaling=scaling,
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            attention_bias=bias or model_type == "qwen2",
            output_bias=bias,
            mlp_bias=bool(config.get("mlp_bias", False)) and model_type == "llama",
            qk_norm=model_type == "qwen3",
            sliding_windows=_sliding_windows(config, model_type, num_layers),
        )
        if num_heads % result.num_kv_heads:
            raise ValueError(
                f"num_key_value_heads: expected a divisor of num_attention_heads={num_heads}, "
                f"got {result.num_kv_heads}"
            )
        if result.head_dim % 2:
            raise ValueError(f"head_dim: expected an even number, got {result.head_dim}")
        return result


def _integer(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive integer; ``default`` where the key is absent or null."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{key}: expected a positive integer, got {value!r}")
    return value


def _rope(config: Mapping[str, Any], max_positions: int) -> tuple[float, dict[str, Any]]:
    """Base and scaling of the rotary embedding: one dictionary in transformers 5, two keys in 4."""
    scaling = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(scaling.pop("rope_theta", None) or config.get("rope_theta") or 10000.0)
    # Files of 2023 say "type"; "mrope" and the like of later ones are rejected in rope.py.
    kind = scaling.pop("type", "default")
    scaling.setdefault("rope_type", kind)
    original = config.get("original_max_position_embeddings") or max_positions
    if scaling["rope_type"] in ("yarn", "llama3", "longrope"):
        scaling.setdefault("original_max_position_embeddings", original)
    partial = scaling.pop("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ValueError(f"partial_rotary_factor: expected 1, got {partial}")
    return theta, scaling


def _sliding_windows(
    config: Mapping[str, Any], model_type: str, num_layers: int
) -> tuple[int | None, ...]:
    if model_type == "mistral":
        return (config.get("sliding_window", 4096),) * num_layers
    if model_type == "llama" or not config.get("use_sliding_window", False):
        return (None,) * num_layers
    window = config.get("sliding_window", 4096)
    first = config.get("max_window_layers", 28)
    kinds = config.get("layer_types") or [
        "sliding_attention" if layer >= first else "full_attention" for layer in range(num_layers)
    ]
    if len(kinds) != num_layers:
        raise ValueError(f"layer_types: expected {num_layers} entries, got {len(kinds)}")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
