"""Vectors of tokens that blocks add, and keys that go along with states: any order of texts is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models.described import described_tensors, write_described_checkpoint

from numbacalib.models import Decoder, open_checkpoint
from numbacalib.models.stream import lent_columns, states_of, stream_size, token_column


@pytest.fixture
def decoder(tmp_path: Path) -> Decoder:
    return Decoder(open_checkpoint(write_described_checkpoint(tmp_path, "gemma4_text")))


def test_the_stream_has_states_then_the_token_then_keys_and_values(decoder: Decoder) -> None:
    """Of 3 blocks the last attends to what the second has: 2 heads of 8 numbers."""
    config = decoder.config
    assert (config.lenders, config.key_sources) == ((1,), (None, None, 1))
    assert token_column(config) == (64, 65)
    assert lent_columns(config, 1) == ((65, 81), (81, 97))
    assert stream_size(config) == decoder.stream_size == 97
    tokens = np.array([[5, 0, 5, 7]])
    hidden = decoder.embed(tokens)
    assert hidden.shape == (1, 4, 97)
    np.testing.assert_array_equal(hidden[..., 64], tokens)
    assert not hidden[..., 65:].any()
    decoder.block(1).forward(hidden)
    np.testing.assert_array_equal(hidden[..., 64], tokens)
    assert hidden[..., 65:].all()
    assert states_of(config, hidden).shape == (1, 4, 64)


def test_a_block_that_was_read_before_takes_further_texts(decoder: Decoder) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, decoder.config.vocab_size, (2, 2, 9))
    block = decoder.block(0)
    states = [block.forward(decoder.embed(tokens)) for tokens in (first, second, first)]
    np.testing.assert_array_equal(states[0], states[2])
    alone = Decoder(decoder.checkpoint)
    np.testing.assert_allclose(
        states[1], alone.block(0).forward(alone.embed(second)), rtol=0, atol=1e-5
    )


def test_vectors_are_their_definition(decoder: Decoder) -> None:
    config = decoder.config
    tensors = described_tensors(config)
    tokens, size, index = np.array([3, 1, 3]), config.layer_input_size, 2
    run = slice(index * size, (index + 1) * size)
    embeddings = tensors["model.embed_tokens.weight"][tokens].astype(np.float64)
    projection = tensors["model.per_layer_model_projection.weight"][run].astype(np.float64)
    projected = embeddings @ projection.T  # times the root of 64, and divided by it
    projected /= np.sqrt((projected**2).mean(axis=1, keepdims=True) + config.rms_norm_eps)
    projected *= tensors["model.per_layer_projection_norm.weight"]
    own = tensors["model.embed_tokens_per_layer.weight"][tokens, run] * size**0.5
    expected = (projected + own) * 0.5**0.5
    tables = decoder.block(index)._weights.tables
    assert tables is not None
    np.testing.assert_allclose(tables.rows(index, tokens), expected, rtol=0, atol=1e-5)
