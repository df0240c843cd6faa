"""Heads that are quantized, as transformers loads them; and everything that stays, under ``ignore``."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from models.tiny import TEXT, random_tokens, write_tiny_checkpoint
from transformers import AutoModelForCausalLM

from numbacalib.formats import dequantized
from numbacalib.formats.registry import stored_layers
from numbacalib.models import Decoder, open_checkpoint
from numbacalib.quantizer import quantize

BOUNDS = {"compressed-tensors": 1e-4, "nvfp4": 2e-2, "mxfp4": 2e-2}
"""Shares of the largest logit; FP4 weights are unpacked to bfloat16."""


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize(
    ("form", "symmetric"),
    [("compressed-tensors", False), ("compressed-tensors", True), ("nvfp4", True), ("mxfp4", True)],
)
def test_transformers_loads_heads(tmp_path, form, symmetric, head):
    model = write_tiny_checkpoint(tmp_path / "model", dtype="float32")
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 20, encoding="utf-8")
    options = {"samples": 4, "sequence_length": 32}
    if form == "compressed-tensors":
        options |= {"group_size": 32, "symmetric": symmetric}
    quantize(
        model,
        tmp_path / "out",
        text=[text],
        formats=[form],
        lm_head=head,
        skip=["*.1.mlp.down_proj"],
        **options,
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    kept = ["model.layers.1.mlp.down_proj", *([] if head else ["lm_head"])]
    assert sorted(config["ignore"]) == sorted(kept)
    theirs, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values()), report
    tokens = random_tokens(24)
    with torch.no_grad():
        logits = theirs(torch.from_numpy(tokens)[None]).logits[0].numpy()
    checkpoint = open_checkpoint(tmp_path / "out")
    layers = stored_layers(checkpoint)
    assert ("lm_head" in layers) == head
    dtype = torch.float32 if form == "compressed-tensors" else torch.bfloat16
    for name, quantized in layers.items():
        weight = theirs.get_submodule(name).weight
        ours = torch.from_numpy(quantized.dequantize()).to(dtype)
        assert torch.equal(weight.to(dtype), ours), name
    decoder = Decoder(dequantized(checkpoint))
    expected = decoder.logits(decoder.forward(tokens))
    bound = BOUNDS[form] * np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=bound)
