"""Tokens that follow others whose keys and values are held, in every architecture."""

import numpy as np
import pytest
from models.described import DESCRIBED, write_described_checkpoint
from models.tiny import RTOL, VOCAB_SIZE, write_tiny_checkpoint

from numbacalib.models import Decoder, open_checkpoint
from numbacalib.models.block import holds_keys
from numbacalib.models.key_values import KeyValues
from numbacalib.models.sampling import HeldWeights, Room, Writer, held_within

HELD = {
    *(
        "cohere",
        "gemma2",
        "gpt2",
        "gpt_bigcode",
        "gpt_neo",
        "gpt_oss",
        "granite",
        "llama",
        "llama4_text",
    ),
    *("mistral", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3"),
}
"""Some in which keys and values of all blocks can be held."""
PLENTY = Room(1 << 30)


def decoder_of(model_type, folder):
    write = write_described_checkpoint if model_type in DESCRIBED else write_tiny_checkpoint
    return Decoder(open_checkpoint(write(folder / "model", model_type)))


def continued(decoder, tokens, before, first):
    """States of tokens after the last block, given those before `first`."""
    hidden = decoder.embed(tokens[:, first:], first)
    for index in range(decoder.config.num_layers):
        decoder.block(index).forward(hidden, before[index])
    return hidden


@pytest.mark.parametrize("model_type", [*DESCRIBED, "llama", "mistral", "qwen2", "qwen3"])
def test_states_do_not_depend_on_what_is_held(tmp_path, model_type):
    """Tokens in three runs, of 4, 1 and 2, have the states of all in one."""
    decoder = decoder_of(model_type, tmp_path)
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (3, 7))
    blocks = range(decoder.config.num_layers)
    holds = all(holds_keys(decoder.config, index) for index in blocks)
    assert holds or model_type not in HELD
    if not holds:
        held = held_within(decoder, 3, 4, 6, PLENTY)
        assert held == (3, False, True, decoder.config.num_layers)
        writer = Writer(HeldWeights(decoder, held), tokens[:, :4])
        writer.step(1)
        assert writer.tokens.shape == (3, 5)
        return
    expected = decoder.forward(tokens)
    before = [KeyValues() for _ in blocks]
    for first, end in ((0, 4), (4, 5), (5, 7)):
        found = continued(decoder, tokens[:, :end], before, first)
        wanted = expected[:, first:end]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=10 * RTOL * abs(wanted).max())
