"""Checkpoints that the quantizer writes, loaded by transformers as they are."""

import numpy as np
import pytest
import torch
from models.tiny import TEXT, random_tokens, write_tiny_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from numbacalib.formats import dequantized
from numbacalib.models import Decoder, open_checkpoint
from numbacalib.quantizer import Settings, quantize


def assert_transformers_agrees(directory, tokens):
    """Compare logits of one sequence; both compute in float32 from the same weights."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    decoder = Decoder(dequantized(open_checkpoint(directory)))
    ours = decoder.logits(decoder.forward(tokens))
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4 * np.abs(ours).max())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_architecture(tmp_path, model_type, symmetric):
    model = write_tiny_checkpoint(tmp_path / "model", model_type)
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 20, encoding="utf-8")
    settings = Settings(bits=3, group_size=32, symmetric=symmetric, samples=4, sequence_length=32)
    quantize(model, tmp_path / "out", text=[text], settings=settings)
    assert_transformers_agrees(tmp_path / "out", random_tokens(24))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_scales_of_either_sign(tmp_path, bits):
    model = write_tiny_checkpoint(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 20, encoding="utf-8")
    settings = {"bits": bits, "symmetric": True, "full_range": True, "group_size": 32}
    quantize(model, tmp_path / "out", text=[text], **settings, samples=4, sequence_length=32)
    written = open_checkpoint(tmp_path / "out")
    scales = [written.tensor(name) for name in written.names() if name.endswith("weight_scale")]
    assert all(0.2 < (each.astype(np.float32) < 0).mean() < 0.8 for each in scales)
    assert_transformers_agrees(tmp_path / "out", random_tokens(24))


def test_smollm2_from_its_gguf(tmp_path, smollm2_file):
    output = tmp_path / "out"
    quantize(smollm2_file, output, settings=Settings(method="rtn", bits=4, group_size=64))
    tokenizer = AutoTokenizer.from_pretrained(output)
    text = "The state of the Union is stronger than it was 10 years ago."
    tokens = np.array(tokenizer(text)["input_ids"])
    assert tokens.tolist() == open_checkpoint(output).tokenizer.encode(text).ids
    assert_transformers_agrees(output, tokens)
