"""A Llama-family forward pass in float64 loops, from the definitions; imports nothing of ours.

RMSNorm: Zhang, Sennrich 2019. Rotary embedding: Su et al. 2021, pairs ``(i, i + d/2)``. Grouped
queries: Ainslie et al. 2023. SwiGLU: Shazeer 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return np.array([row / math.sqrt(np.mean(row * row) + eps) * weight for row in x])


def rotate(
    head: Array,
    position: int,
    theta: float,
    dim: int = 0,
    interleaved: bool = False,
    begin: int = 0,
) -> Array:
    """Turn `dim` dimensions from `begin` on, all of them by default."""
    dim = dim or len(head)
    result = head.copy()
    for i in range(dim // 2):
        angle = position * theta ** (-2 * i / dim)
        left, right = (2 * i, 2 * i + 1) if interleaved else (i, i + dim // 2)
        left, right = begin + left, begin + right
        a, b = head[left], head[right]
        result[left] = a * math.cos(angle) - b * math.sin(angle)
        result[right] = b * math.cos(angle) + a * math.sin(angle)
    return result


def softmax(scores: Array) -> Array:
    exponentials = np.exp(scores - scores.max())
    return exponentials / exponentials.sum()


def layer_norm(x: Array, weight: Array, bias: Array | float, eps: float) -> Array:
    return np.array([(row - row.mean()) / math.sqrt(row.var() + eps) * weight + bias for row in x])


def activation(name: str, x: Array) -> Array:
    """An MLP's activation, from its definition."""
    functions: dict[str, Callable[[float], float]] = {
        "silu": lambda v: v / (1 + math.exp(-v)),
        "gelu": lambda v: v / 2 * (1 + math.erf(v / math.sqrt(2))),
        "gelu_tanh": lambda v: (
            v / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))
        ),
        "relu": lambda v: max(v, 0),
        "squared_relu": lambda v: max(v, 0) ** 2,
        "sigmoid": lambda v: 1 / (1 + math.exp(-v)),
        "softplus": lambda v: math.log1p(math.exp(v)),
        "identity": lambda v: v,
    }
    return np.vectorize(functions[name], otypes=[np.float64])(x)


def clamped_swiglu(gate: Array, up: Array, slope: float, limit: float) -> Array:
    """The gated activation of GPT-OSS, from its definition."""
    gate = np.where(gate > limit, limit, gate)
    up = np.where(up > limit, limit, np.where(up < -limit, -limit, up))
    return (up + 1) * gate / (1 + np.exp(-slope * gate))


def attention(
    queries: Array,
    keys: Array,
    values: Array,
    window: int | None = None,
    scale: float | None = None,
    cap: float = 0,
    sinks: Array | None = None,
) -> Array:
    """Causal attention of ``[T, heads, d]`` queries to ``[T, kv_heads, d]`` keys and any values."""
    length, heads, size = queries.shape
    group = heads // keys.shape[1]
    scale = 1 / math.sqrt(size) if scale is None else scale
    result = np.empty((length, heads, values.shape[2]))
    for t in range(length):
        first = 0 if window is None else max(0, t - window + 1)
        for head in range(heads):
            scores = keys[first : t + 1, head // group] @ queries[t, head] * scale
            if cap:
                scores = cap * np.tanh(scores / cap)
            if sinks is not None:
                scores = np.append(scores, sinks[head])
            weights = softmax(scores)[: t + 1 - first]
            result[t, head] = weights @ values[first : t + 1, head // group]
    return result


def forward(config: dict[str, Any], tensors: dict[str, NDArray[Any]], tokens: Any) -> Array:
    """Logits ``[T, vocab_size]`` of one sequence, unscaled rotary embedding."""
    weights = {name: np.asarray(tensor, dtype=np.float64) for name, tensor in tensors.items()}
    eps, theta = config["rms_norm_eps"], config["rope_theta"]
    size = config["head_dim"]
    x = weights["model.embed_tokens.weight"][np.asarray(tokens)]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."

        def linear(name: str, x: Array, prefix: str = prefix) -> Array:
            bias = weights.get(f"{prefix}{name}.bias", 0.0)
            return x @ weights[f"{prefix}{name}.weight"].T + bias

        def heads_of(name: str, x: Array, prefix: str = prefix) -> Array:
            heads = linear(f"self_attn.{name}_proj", x).reshape(len(x), -1, size)
            norm = weights.get(f"{prefix}self_attn.{name}_norm.weight")
            if norm is not None:
                heads = np.array([rms_norm(row, norm, eps) for row in heads])
            if name != "v":
                for position in range(len(x)):
                    heads[position] = [rotate(head, position, theta) for head in heads[position]]
            return heads

        a = rms_norm(x, weights[f"{prefix}input_layernorm.weight"], eps)
        context = attention(
            heads_of("q", a), heads_of("k", a), heads_of("v", a), config.get("sliding_window")
        )
        x = x + linear("self_attn.o_proj", context.reshape(len(x), -1))
        a = rms_norm(x, weights[f"{prefix}post_attention_layernorm.weight"], eps)
        gate, up = linear("mlp.gate_proj", a), linear("mlp.up_proj", a)
        x = x + linear("mlp.down_proj", gate / (1 + np.exp(-gate)) * up)
    x = rms_norm(x, weights["model.norm.weight"], eps)
    return x @ weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).T


def losses(logits: Array, tokens: Any) -> Array:
    """Negative log likelihood of tokens 1 .. T-1 under the logits before each."""
    return np.array(
        [-math.log(softmax(row)[t]) for row, t in zip(logits, tokens[1:], strict=False)]
    )
