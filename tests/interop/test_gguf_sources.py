"""A GGUF file of layers of two kinds, quantized into a checkpoint: what transformers computes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from models.gguf_models import MODELS, write_model
from models.tiny import random_tokens
from transformers import AutoConfig, AutoModelForCausalLM

from numbacalib.formats import dequantized
from numbacalib.formats.gguf_metadata import model_metadata, rope_tensors
from numbacalib.models import Decoder, ModelConfig, open_checkpoint
from numbacalib.models.gguf_config import hf_config
from numbacalib.models.gguf_metadata import Metadata
from numbacalib.quantizer import Settings, quantize


@pytest.mark.parametrize(
    "name",
    [
        *("gemma4_text", "gpt_neox", "granitemoehybrid", "lfm2", "lfm2_moe"),
        *("nemotron_h", "nemotron_h-latent", "phi", "qwen3_5_text", "qwen3_next"),
    ],
)
def test_it_loads_with_the_same_logits(tmp_path: Path, name: str) -> None:
    settings = Settings(method="rtn", bits=8, group_size=32, symmetric=True)
    source = write_model(tmp_path / "m", name)
    plain = Settings(method="rtn")
    quantize(source, tmp_path / "gguf", settings=plain, formats=["gguf:Q8_0"])
    (file,) = (tmp_path / "gguf").iterdir()
    output = tmp_path / "out"
    quantize(file, output, settings=settings)
    tokens = random_tokens(1, 40)
    decoder = Decoder(dequantized(open_checkpoint(output)))
    ours = np.asarray(decoder.logits(decoder.forward(tokens)))
    model = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5 * np.abs(ours).max())


@pytest.mark.parametrize("name", MODELS)
def test_configurations_of_files_are_transformers_own(tmp_path: Path, name: str) -> None:
    checkpoint = open_checkpoint(write_model(tmp_path / "m", name))
    options, rope = model_metadata(checkpoint), rope_tensors(checkpoint.config)
    shapes = {tensor: checkpoint.info(tensor).shape for tensor in checkpoint.names()}
    made = hf_config(Metadata(options), options["general.architecture"], shapes, rope)
    (tmp_path / "config.json").write_text(json.dumps(made))
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.model_type == made["model_type"]
    assert ModelConfig.from_hf(made).num_layers == loaded.num_hidden_layers
