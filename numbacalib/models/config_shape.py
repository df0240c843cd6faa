"""Readers of a decoder's sizes, rotary embedding and biases, by its architecture's keys and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numbacalib.models.description import ACTIVATIONS, Architecture
from numbacalib.models.fields import Fields
from numbacalib.models.rope_parameters import read_rope, read_ropes


def read_shape(fields: Fields, architecture: Architecture) -> dict[str, Any]:
    """Read the options that every decoder has, by the architecture's own keys and defaults."""
    key, defaults = architecture.key, architecture.defaults
    activation = fields.choice(key("hidden_act"), tuple(ACTIVATIONS), _activation(defaults))
    num_heads = fields.integer(key("num_attention_heads"), 1, 65_536)
    hidden_size = fields.integer(key("hidden_size"), 1, 1 << 20)
    head_dim = _head_dim(fields, architecture, hidden_size, num_heads)
    max_positions = fields.integer(
        key("max_position_embeddings"), 1, default=defaults["max_position_embeddings"]
    )
    return {
        "model_type": architecture.model_type,
        "hidden_size": hidden_size,
        "intermediate_size": _intermediate_size(fields, architecture, hidden_size),
        "num_layers": fields.integer(key("num_hidden_layers"), 1, 10_000),
        "num_heads": num_heads,
        "num_kv_heads": _num_kv_heads(fields, architecture, num_heads),
        "head_dim": head_dim,
        "vocab_size": fields.integer(key("vocab_size"), 1, 1 << 28),
        "max_position_embeddings": max_positions,
        "activation": ACTIVATIONS[activation],
        "rms_norm_eps": fields.number(
            key("rms_norm_eps"), 1e-12, 0.1, defaults.get("rms_norm_eps", 1e-6)
        ),
        "tie_word_embeddings": fields.flag(
            "tie_word_embeddings", defaults.get("tie_word_embeddings", False)
        ),
    } | _read_rotary(fields, architecture, head_dim, max_positions)


def _read_rotary(
    fields: Fields, architecture: Architecture, head_dim: int, max_positions: int
) -> dict[str, Any]:
    """Read the rotary embedding, or both if layers with windows have their own."""
    defaults = architecture.defaults
    if not architecture.local_rope_key:
        theta, scaling, dim = read_rope(
            fields,
            head_dim=head_dim,
            max_positions=max_positions,
            theta=defaults.get("rope_theta"),
            share=defaults.get("partial_rotary_factor"),
            original=defaults.get("original_max_position_embeddings"),
            names=architecture.rope_names,
        )
        return {"rope_theta": theta, "rope_scaling": scaling, "rotary_dim": dim}
    own, others = defaults.get("partial_rotary_factor"), defaults.get("local_partial_rotary_factor")
    (theta, scaling, dim), local = read_ropes(
        fields,
        dim=head_dim,
        max_positions=max_positions,
        theta=defaults["rope_theta"],
        local_key=architecture.local_rope_key,
        local_theta=defaults["local_rope_theta"],
        shares=None if own is None or others is None else (own, others),
    )
    return {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rotary_dim": dim,
        "local_rope": local,
    }


def _intermediate_size(fields: Fields, architecture: Architecture, hidden_size: int) -> int:
    key, factor = (
        architecture.key("intermediate_size"),
        architecture.defaults.get("intermediate_factor"),
    )
    if factor is None:
        return int(fields.integer(key, 1, 1 << 24))
    return int(fields.integer(key, 1, 1 << 24, None) or factor * hidden_size)


def _head_dim(fields: Fields, architecture: Architecture, hidden_size: int, num_heads: int) -> int:
    key = architecture.key("head_dim")
    head_dim = fields.integer(key, 2, 65_536, architecture.defaults.get("head_dim"))
    if head_dim is None:
        if hidden_size % num_heads:
            heads = architecture.key("num_attention_heads")
            raise fields.error(heads, f"a divisor of hidden_size {hidden_size}")
        head_dim = hidden_size // num_heads
    if head_dim % 2:
        raise ValueError(f"{key}: expected an even number, got {head_dim}")
    return int(head_dim)


def _num_kv_heads(fields: Fields, architecture: Architecture, num_heads: int) -> int:
    """Read the number of key-value heads: `num_heads` for null, or if transformers has no default."""
    key = architecture.key("num_key_value_heads")
    count = fields.integer(key, 1, num_heads, None)
    if count is None:
        default = architecture.defaults.get("num_key_value_heads", num_heads)
        count = num_heads if key in fields else default
    if num_heads % count:
        raise ValueError(
            f"{key}: expected a divisor of num_attention_heads={num_heads}, got {count}"
        )
    return int(count)


def _activation(defaults: Mapping[str, Any]) -> str:
    return str(defaults.get("hidden_act", "silu"))


def read_biases(fields: Fields, architecture: Architecture) -> dict[str, bool]:
    """Read the flags of linear layers' biases: see `Architecture.biases`."""
    options = {}
    for part in ("attention", "output", "mlp"):
        given = architecture.biases.get(part, False)
        if not isinstance(given, bool):
            keys = (given,) if isinstance(given, str) else given
            flags = [fields.flag(key, architecture.defaults.get(key, False)) for key in keys]
            given = any(flags)
        options[f"{part}_bias"] = given
    return options
