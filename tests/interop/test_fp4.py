"""FP4 checkpoints that we write, read by compressed-tensors and transformers; and what they quantize."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from interop.architectures import save as save_model
from models.tiny import TEXT, random_tokens, tiny_tokenizer, write_tiny_checkpoint
from safetensors.numpy import save
from safetensors.torch import load
from transformers import AutoModelForCausalLM

from numbacalib.formats import FORMATS, dequantized
from numbacalib.formats.safetensors_format import Left
from numbacalib.methods import fp4_scales, rtn
from numbacalib.models import Decoder, open_checkpoint
from numbacalib.quantizer import Settings, quantize

KINDS = {"nvfp4": 16, "mxfp4": 32}
BOUND = 2e-2
"""Of the largest logit: transformers unpacks weights to bfloat16."""


def config_of(kind):
    return FORMATS[kind].configuration({}, Left())["quantization_config"]


def rounded(weight, kind):
    found = fp4_scales(weight, kind, search=False)
    options = {"group_size": KINDS[kind], "symmetric": True, "element": "e2m1"}
    quantized = rtn(weight, bits=4, scales=found.scales, scale_dtype=np.float32, **options)
    return found, quantized


def scheme_of(kind):
    (group,) = config_of(kind)["config_groups"].values()
    return QuantizationScheme.model_validate(group)


@pytest.mark.parametrize("kind", KINDS)
def test_config_is_understood_in_full(kind):
    config = config_of(kind)
    parsed = QuantizationConfig.model_validate(config).model_dump(mode="json")
    group = config["config_groups"].pop("group_0")
    theirs = parsed["config_groups"]["group_0"]
    weights = group.pop("weights")
    del config["dequantize"]  # of transformers
    assert theirs["weights"].items() >= weights.items()
    assert theirs.items() >= group.items()
    del config["config_groups"]
    assert parsed.items() >= config.items()


@pytest.mark.parametrize("kind", KINDS)
def test_compressed_tensors_unpacks_our_weights(kind):
    """To the bit, rounded once to the bfloat16 in which it unpacks them."""
    weight = np.random.default_rng(1).standard_normal((37, 96)).astype(np.float32)
    found, quantized = rounded(weight, kind)
    stored = replace(quantized, global_scale=found.global_scale)
    tensors = load(save(FORMATS[kind].pack(stored)))
    compressor = BaseCompressor.get_value_from_registry(f"{kind}-pack-quantized")
    theirs = compressor.decompress(tensors, scheme_of(kind))["weight"]
    expected = torch.from_numpy(quantized.dequantize()).to(theirs.dtype)
    assert torch.equal(theirs, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_scales_are_those_of_compressed_tensors(kind):
    """Round-to-nearest without a search, packed by its own compressor from the same scales."""
    weight = np.random.default_rng(2).standard_normal((24, 64)).astype(np.float32)
    found, quantized = rounded(weight, kind)
    stored = replace(quantized, global_scale=found.global_scale)
    ours = load(save(FORMATS[kind].pack(stored)))
    divisor = found.global_scale
    scales = found.scales if divisor is None else found.scales * divisor
    state = {"weight": torch.from_numpy(weight), "weight_scale": torch.from_numpy(scales)}
    if divisor is not None:
        state["weight_global_scale"] = torch.tensor([divisor])
    compressor = BaseCompressor.get_value_from_registry(f"{kind}-pack-quantized")
    theirs = compressor.compress(state, scheme_of(kind))
    values = [unpacked(tensors["weight_packed"]) for tensors in (ours, theirs)]
    assert torch.equal(*values)  # they keep the sign of a zero
    for part in set(ours) - {"weight_packed"}:
        assert torch.equal(ours[part].float(), theirs[part].float()), part


def unpacked(packed):
    rows, width = packed.shape
    return unpack_fp4_from_uint8(packed, rows, 2 * width)


@pytest.mark.parametrize("variant", ["mixtral", "qwen3_moe", "glm4_moe"])
def test_experts(tmp_path, variant):
    """Those on MXFP4 are loaded; those on NVFP4 are not written, since they would be misread."""
    save_model(tmp_path / "model", variant)
    tiny_tokenizer().save(str(tmp_path / "model" / "tokenizer.json"))
    settings = Settings(method="rtn")
    quantize(tmp_path / "model", tmp_path / "out", settings=settings, formats=["mxfp4"])
    theirs, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values()), report
    assert_logits(theirs, open_checkpoint(tmp_path / "out"))
    with pytest.raises(ValueError, match="expected no experts, whose global scales"):
        quantize(tmp_path / "model", tmp_path / "no", settings=settings, formats=["nvfp4"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_what_we_write(tmp_path, kind, model_type, dtype):
    model = write_tiny_checkpoint(tmp_path / "model", model_type, dtype)
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 20, encoding="utf-8")
    settings = Settings(samples=4, sequence_length=32)
    quantize(model, tmp_path / "out", text=[text], settings=settings, formats=[kind])
    assert_loads(tmp_path / "out", kind)


def assert_loads(directory, kind):
    """Compare weights to the bit and logits within the bound."""
    theirs, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), report
    checkpoint = open_checkpoint(directory)
    for layer, quantized in FORMATS[kind].layers(checkpoint).items():
        weight = theirs.get_submodule(layer).weight
        ours = torch.from_numpy(quantized.dequantize()).to(torch.bfloat16)
        assert torch.equal(weight.to(torch.bfloat16), ours), layer
    assert_logits(theirs, checkpoint)


def assert_logits(theirs, checkpoint):
    tokens = random_tokens(24)
    with torch.no_grad():
        logits = theirs(torch.from_numpy(tokens)[None]).logits[0].float().numpy()
    decoder = Decoder(dequantized(checkpoint))
    expected = decoder.logits(decoder.forward(tokens))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=BOUND * np.abs(expected).max())
