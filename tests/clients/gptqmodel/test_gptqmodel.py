"""GPTQ and AWQ checkpoints loaded by transformers and by GPTQModel itself, on the CPU, in float32."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

os.environ |= {"TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}

import numpy as np
import pytest
import torch
from clients.tiny_llama import TOKENS, assert_same_logits, our_logits, write_quantized
from gptqmodel import BACKEND, GPTQModel
from models.gguf_models import write_model
from models.tiny import TEXT
from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig

from numbacalib.quantizer import Settings, quantize

BOUND = 2e-3
"""Of the largest logit: these kernels multiply in float16."""

CASES = [
    *(("gptq", bits, size, True, False) for bits in (2, 3, 4, 8) for size in (32, 128, None)),
    *(("gptq", bits, 32, False, False) for bits in (2, 3, 4, 8)),
    *(("gptq_v2", bits, 64, symmetric, False) for bits in (2, 3, 4, 8) for symmetric in (0, 1)),
    *(
        ("gptq", 4, 32, True, True),
        ("gptq_v2", 4, 32, False, True),
        ("gptq_v2", 3, 64, False, True),
    ),
    *(("awq", 4, size, symmetric, False) for size in (32, 64, 128) for symmetric in (0, 1)),
]


def written(directory, form, bits, size, symmetric, disordered, dtype="float16"):
    settings = {"bits": bits, "group_size": size, "symmetric": bool(symmetric), "dtype": dtype}
    if disordered:
        file = directory / "text.txt"
        file.write_text(TEXT * 20, encoding="utf-8")
        settings |= {"text": [file], "samples": 8, "sequence_length": 32}
        settings |= {"method": "gptq", "act_order": "desc", "static_groups": False}
    return write_quantized(directory, form, **settings)


def logits_of(model) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(TOKENS)[None]).logits[0].float().numpy()


def loaded(directory, form, bits):
    """The model as transformers loads it."""
    backend = {"gptq": "gptq_torch", "awq": "torch_awq"}[form.split("_")[0]]
    config = AwqConfig if form == "awq" else GPTQConfig
    return AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        device_map="cpu",
        quantization_config=config(bits=bits, backend=backend),
    )


def itself(directory, form):
    """The model as GPTQModel loads it."""
    backend = BACKEND.AWQ_TORCH if form == "awq" else BACKEND.GPTQ_TORCH
    return GPTQModel.load(str(directory), device="cpu", backend=backend).model


@pytest.mark.parametrize(("form", "bits", "size", "symmetric", "disordered"), CASES)
def test_transformers(tmp_path, form, bits, size, symmetric, disordered):
    directory = written(tmp_path, form, bits, size, symmetric, disordered)
    model = loaded(directory, form, bits)
    assert "Linear" not in {type(module).__name__ for module in model.model.modules()}
    assert_same_logits(logits_of(model), directory, BOUND)


@pytest.mark.parametrize(
    ("form", "bits", "size", "symmetric", "disordered"),
    [case for case in CASES if case[2] in (32, None) and (case[0] != "gptq" or case[3])],
)
def test_gptqmodel(tmp_path, form, bits, size, symmetric, disordered):
    directory = written(tmp_path, form, bits, size, symmetric, disordered)
    assert_same_logits(logits_of(itself(directory, form)), directory, 2e-2)


SKIPPED = "model.layers.0.mlp.down_proj"
ONE_SKIPPED = {"bits": 4, "group_size": 32, "symmetric": True, "skip": (SKIPPED,)}


def left_in(model):
    return [
        name
        for name, module in model.named_modules()
        if type(module).__name__ == "Linear" and name.endswith("_proj")
    ]


@pytest.mark.parametrize(
    ("form", "load"),
    [("gptq", itself), ("awq", itself), ("awq", lambda *given: loaded(*given, 4))],
)
def test_layers_that_stay_as_they_are(tmp_path, form, load):
    directory = write_quantized(tmp_path, form, **ONE_SKIPPED)
    model = load(directory, form)
    assert left_in(model) == [SKIPPED]
    assert_same_logits(logits_of(model), directory, 2e-2)


def test_transformers_takes_all_layers_of_gptq_for_quantized(tmp_path):
    """If this fails, it has come to except layers: say so in docs/formats.md."""
    assert not left_in(loaded(write_quantized(tmp_path, "gptq", **ONE_SKIPPED), "gptq", 4))


def test_gptqmodel_refuses_version_1_with_zeros(tmp_path):
    """If this fails, GPTQModel has come to load it: say so in docs/formats.md."""
    directory = written(tmp_path, "gptq", 4, 32, False, False)
    with pytest.raises(ValueError, match="sym"):
        GPTQModel.load(str(directory), device="cpu", backend=BACKEND.GPTQ_TORCH)


HEAD = {"bits": 4, "group_size": 32, "symmetric": True, "lm_head": True}


@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
def test_heads(tmp_path, form):
    directory = write_quantized(tmp_path, form, **HEAD)
    model = itself(directory, form)
    assert type(model.lm_head).__name__ != "Linear"
    assert_same_logits(logits_of(model), directory, 2e-2)


def test_transformers_takes_heads_for_plain(tmp_path):
    """If this fails, it has come to load quantized heads: say so in docs/formats.md."""
    model = loaded(write_quantized(tmp_path, "gptq", **HEAD), "gptq", 4)
    assert type(model.lm_head).__name__ == "Linear"


def of_experts(directory, name, form):
    """A mixture of experts, quantized without a text."""
    source = write_model(directory / "model", name)
    settings = Settings(method="rtn", group_size=32, symmetric=True)
    quantize(source, directory / "quantized", settings=settings, formats=[form])
    return directory / "quantized"


def errors(logits, directory):
    """Errors of each token's logits, a share of the largest logit."""
    ours = our_logits(directory)
    return np.abs(logits - ours).max(axis=1) / np.abs(ours).max()


@pytest.mark.parametrize("form", ["gptq", "awq"])
@pytest.mark.parametrize("name", ["qwen2_moe", "qwen3_moe", "deepseek_v3"])
def test_experts(tmp_path, name, form):
    """Products in float16 send some tokens to other experts."""
    directory = of_experts(tmp_path, name, form)
    assert (errors(logits_of(itself(directory, form)), directory) < 2e-2).mean() > 0.8


@pytest.mark.parametrize("form", ["gptq", "awq"])
def test_transformers_alone_leaves_experts_out(tmp_path, form):
    """If this fails, it has come to load them: say so in docs/formats.md."""
    directory = of_experts(tmp_path, "qwen3_moe", form)
    tokens, output = tmp_path / "tokens.npy", tmp_path / "logits.npy"
    np.save(tokens, TOKENS)
    script = Path(__file__).with_name("logits.py")
    subprocess.run([sys.executable, script, directory, form, tokens, output], check=True)
    assert np.median(errors(np.load(output), directory)) > 0.1
