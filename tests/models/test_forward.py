"""The forward pass against float64 loops written from the definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import naive_llama
from models.tiny import (
    RTOL,
    assert_close,
    random_tokens,
    tiny_config,
    tiny_tensors,
    write_tiny_checkpoint,
)

from numbacalib.models import Decoder, open_checkpoint

VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-biased": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama-one-kv-head": {"model_type": "llama", "num_key_value_heads": 1},
    "llama-wide-heads": {"model_type": "llama", "head_dim": 24},
    "mistral-window": {"model_type": "mistral", "sliding_window": 5},
    "qwen2-tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3"},
}


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_logits_and_losses_equal_the_definition(tmp_path: Path, overrides: dict[str, Any]) -> None:
    config = tiny_config(**overrides)
    decoder = Decoder(open_checkpoint(write_tiny_checkpoint(tmp_path, **overrides)))
    tokens = random_tokens(2, 19)
    hidden = decoder.forward(tokens)
    expected = np.array([naive_llama.forward(config, tiny_tensors(config), t) for t in tokens])
    assert_close(decoder.logits(hidden), expected)

    losses = np.array([naive_llama.losses(e, t) for e, t in zip(expected, tokens, strict=True)])
    assert_close(decoder.token_losses(hidden, tokens), losses)
    assert decoder.loss(tokens) == pytest.approx(losses.mean(), rel=RTOL)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_checkpoints_are_computed_in_float32(tmp_path: Path, dtype: str) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path, dtype=dtype, shards=3))
    tensors = {name: checkpoint.tensor(name) for name in checkpoint.names()}
    assert {str(tensor.dtype) for tensor in tensors.values()} == {dtype}
    decoder, tokens = Decoder(checkpoint), random_tokens(9)
    logits = decoder.logits(decoder.forward(tokens))
    assert logits.dtype == np.float32
    assert_close(logits, naive_llama.forward(tiny_config(), tensors, tokens))


def test_activations_stand_large_values(tmp_path: Path) -> None:
    decoder = Decoder(open_checkpoint(write_tiny_checkpoint(tmp_path)))
    block = decoder.block(0)
    x = np.ones((3, 64), dtype=np.float32)
    block.linears["mlp.gate_proj"] = np.full((96, 64), -10, dtype=np.float32)
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_array_equal(block.mlp.inner(x), 0)


def test_stages_compose_to_forward_for_one_and_several_sequences(tmp_path: Path) -> None:
    block = Decoder(open_checkpoint(write_tiny_checkpoint(tmp_path, "qwen3"))).block(1)
    hidden = np.random.default_rng(0).standard_normal((3, 11, 64), dtype=np.float32)
    result = hidden.copy()
    for half in block.sublayers:
        half.add_output(result, half.inner(half.input(result)))
    assert not np.array_equal(hidden, result)
    np.testing.assert_array_equal(block.forward(hidden.copy()), result)
    assert_close(np.stack([block.forward(sequence) for sequence in hidden]), result)


def test_replaced_weights_take_effect_in_their_stage(tmp_path: Path) -> None:
    decoder = Decoder(open_checkpoint(write_tiny_checkpoint(tmp_path)))
    block = decoder.block(0)
    assert [name for stage in block.stages for name in stage] == list(block.linears)
    x = np.random.default_rng(0).standard_normal((5, 64), dtype=np.float32)
    activation = np.ones((5, 96), dtype=np.float32)
    block.linears["mlp.down_proj"] = np.zeros((64, 96), dtype=np.float32)
    np.testing.assert_array_equal(block.mlp.add_output(x.copy(), activation), x)
    block.linears["self_attn.v_proj"] = np.zeros((32, 64), dtype=np.float32)
    np.testing.assert_array_equal(block.attention.inner(x), 0)
    assert decoder.block(0).linears["mlp.down_proj"].any()


def test_a_weight_function_stands_in_for_packed_linears(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path))
    asked = []

    def doubled(name: str) -> Any:
        asked.append(name)
        return 2 * checkpoint.tensor(name)

    block = Decoder(checkpoint, doubled).block(1)
    plain = Decoder(checkpoint).block(1)
    assert len(asked) == 7
    assert all(name.endswith("_proj.weight") for name in asked)
    for name, weight in plain.linears.items():
        np.testing.assert_array_equal(block.linears[name], 2 * weight)

    with pytest.raises(ValueError, match=r"q_proj.weight: expected shape \(64, 64\), got \(1, 2\)"):
        Decoder(checkpoint, lambda _: np.zeros((1, 2))).block(0)


@pytest.mark.parametrize("tokens", [[[0, -1]], [320], [0.5], [], 3])
def test_tokens_outside_the_vocabulary_are_an_error(tmp_path: Path, tokens: Any) -> None:
    decoder = Decoder(open_checkpoint(write_tiny_checkpoint(tmp_path)))
    with pytest.raises(ValueError, match=r"^tokens: expected"):
        decoder.embed(tokens)


def test_one_token_has_no_loss(tmp_path: Path) -> None:
    decoder = Decoder(open_checkpoint(write_tiny_checkpoint(tmp_path)))
    with pytest.raises(ValueError, match="tokens: expected sequences of at least 2, got 1"):
        decoder.loss([[1], [2]])


def test_a_trained_model_gives_its_own_logits(glass: Any) -> None:
    decoder = Decoder(open_checkpoint(glass.directory))
    tokens = np.random.default_rng(0).integers(0, decoder.config.vocab_size, (3, 128))
    expected = glass.model.forward(tokens).data
    hidden = decoder.forward(tokens)
    assert_close(decoder.logits(hidden), expected)
    theirs = glass.model.loss(tokens[:, :-1], tokens[:, 1:]).data
    assert decoder.loss(tokens) == pytest.approx(float(theirs), rel=RTOL)
