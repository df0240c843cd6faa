"""A block's gated delta net against its definition, in both layouts that files have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import naive_delta
import numpy as np
import pytest
from models import naive_llama
from models.described import write_described_checkpoint
from models.tiny import assert_close

from numbacalib.models import Decoder, open_checkpoint

KEYS, VALUES, KEY, VALUE = 2, 4, 8, 8
"""Heads and their lengths in `DESCRIBED`."""


def taken_apart(weights: dict[str, Any], x: Any) -> tuple[Any, ...]:
    """Queries, keys, values and gates [T, ...] and scores of rates and decays of tokens [T, K]."""
    if "linear_attn.in_proj_qkv.weight" in weights:
        both = x @ weights["linear_attn.in_proj_qkv.weight"].T
        parts = np.split(both, [KEYS * KEY, 2 * KEYS * KEY], axis=1)
        others = (x @ weights[f"linear_attn.in_proj_{part}.weight"].T for part in "zba")
        return *parts, *others
    share = VALUES // KEYS
    together = (x @ weights["linear_attn.in_proj_qkvz.weight"].T).reshape(len(x), KEYS, -1)
    ends = np.cumsum([KEY, KEY, share * VALUE])
    scores = (x @ weights["linear_attn.in_proj_ba.weight"].T).reshape(len(x), KEYS, -1)
    parts = [*np.split(together, ends, axis=2), *np.split(scores, 2, axis=2)]
    return tuple(part.reshape(len(x), -1) for part in parts)


def silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


def naive(weights: dict[str, Any], x: Any, eps: float) -> Any:
    """Inputs of the output layer, in float64, of a sequence [T, K]."""
    *streams, gates, rates, decays = taken_apart(weights, x)
    taps = weights["linear_attn.conv1d.weight"][:, 0]
    streams = silu(naive_delta.causal_convolution(np.concatenate(streams, axis=1), taps))
    queries, keys, values = np.split(streams, [KEYS * KEY, 2 * KEYS * KEY], axis=1)
    queries, keys = (y.reshape(len(x), KEYS, KEY) for y in (queries, keys))
    queries, keys = (y / np.sqrt((y * y).sum(-1, keepdims=True) + 1e-6) for y in (queries, keys))
    heads = weights["linear_attn.A_log"], weights["linear_attn.dt_bias"]
    values = values.reshape(len(x), VALUES, VALUE)
    found = naive_delta.delta_rule(queries / KEY**0.5, keys, values, decays, rates, *heads)
    norm = weights["linear_attn.norm.weight"]
    normalized = naive_llama.rms_norm(found.reshape(-1, VALUE), norm, eps)
    return (normalized * silu(gates.reshape(-1, VALUE))).reshape(len(x), -1)


@pytest.mark.parametrize("model_type", ["qwen3_next", "qwen3_5_text"])
def test_a_delta_net_is_its_definition(tmp_path: Path, model_type: str) -> None:
    checkpoint = open_checkpoint(write_described_checkpoint(tmp_path, model_type))
    block = Decoder(checkpoint).block(0)
    weights = {
        name.removeprefix("model.layers.0."): checkpoint.tensor(name).astype(np.float64)
        for name in checkpoint.names()
    }
    x = np.random.default_rng(0).standard_normal((2, 9, 64), np.float32)
    expected = [naive(weights, row.astype(np.float64), checkpoint.config.rms_norm_eps) for row in x]
    assert_close(block.attention.inner(x), np.array(expected))


@pytest.mark.parametrize("model_type", ["qwen3_next", "qwen3_5_text"])
def test_what_small_layers_read_is_not_scaled(tmp_path: Path, model_type: str) -> None:
    checkpoint = open_checkpoint(write_described_checkpoint(tmp_path, model_type))
    decoder = Decoder(checkpoint)
    delta, attention = decoder.block(0), decoder.block(1)
    assert [delta.producer(stage) for stage in delta.stages[:2]] == [None, None]
    assert attention.producer(attention.stages[0]) == "input_layernorm"
    assert delta.producer(delta.stages[2]) == "post_attention_layernorm"
