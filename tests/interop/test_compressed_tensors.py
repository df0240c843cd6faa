"""The checkpoints that we write, read by compressed-tensors and transformers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.compressors.pack_quantized import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from models.tiny import tiny_config, tiny_tensors
from transformers import AutoModelForCausalLM

from numbacalib.formats.bit_packing import pack_bits, unpack_bits
from numbacalib.formats.compressed_tensors import PackedLayout, weight_reader
from numbacalib.formats.output_directory import new_directory
from numbacalib.formats.safetensors_writer import SafetensorsWriter
from numbacalib.methods import QuantizedWeight, rtn
from numbacalib.models import Decoder, open_checkpoint

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("axis", [0, 1])
def test_packing_is_that_of_compressed_tensors(bits, axis):
    """Every length up to 70, along axis 1 as weights are and along axis 0 as zero points are."""
    rng = np.random.default_rng(bits)
    for length, other in itertools.product(range(1, 71), (1, 2, 7, 33)):
        shape = (length, other) if axis == 0 else (other, length)
        codes = rng.integers(0, 1 << bits, shape, np.uint8)
        signed = torch.from_numpy((codes.astype(np.int16) - (1 << (bits - 1))).astype(np.int8))
        packed = pack_to_int32(signed, bits, packed_dim=axis)
        # Their streams run along `axis`, ours along rows.
        rows, words = (codes, packed.numpy()) if axis else (codes.T, packed.numpy().T)
        np.testing.assert_array_equal(pack_bits(rows, bits), words, strict=True)
        np.testing.assert_array_equal(unpack_bits(words, bits, length), rows, strict=True)
        if len(packed) == 1:
            # compressed-tensors 0.20 views 4-bit words as bytes, and refuses one row of them along
            # axis 0 for the stride of that row, which addresses nothing: 1 is as good and passes.
            packed = packed.as_strided(packed.shape, (1, 1))
        assert torch.equal(unpack_from_int32(packed, bits, codes.shape, packed_dim=axis), signed)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [32, None])
def test_compressed_tensors_decompresses_to_our_weights(bits, symmetric, group_size):
    weight = np.random.default_rng(bits).standard_normal((37, 96)).astype(np.float32)
    layout = PackedLayout({"q": 96}, bits=bits, group_size=group_size, symmetric=symmetric)
    quantized = rtn(
        weight, bits=bits, group_size=group_size, symmetric=symmetric, scale_dtype=np.float32
    )
    tensors = {name: torch.from_numpy(t) for name, t in layout.pack(quantized).items()}
    (group,) = layout.quantization_config()["config_groups"].values()
    theirs = PackedQuantizationCompressor.decompress(
        tensors, QuantizationScheme.model_validate(group)
    )
    np.testing.assert_array_equal(theirs["weight"].numpy(), quantized.dequantize(), strict=True)


def test_config_is_understood_in_full():
    for symmetric in (False, True):
        layout = PackedLayout({"q": 96, "k": 80}, bits=3, group_size=32, symmetric=symmetric)
        config = layout.quantization_config()
        config.pop("dequantize", None)
        parsed = json.loads(QuantizationConfig.model_validate(config).model_dump_json())
        for name, group in config["config_groups"].items():
            weights = group.pop("weights")
            assert parsed["config_groups"][name].items() >= group.items()
            assert parsed["config_groups"][name]["weights"].items() >= weights.items()
        del config["config_groups"]
        assert parsed.items() >= config.items()


def write_quantized(
    directory: Path, model_type: str, dtype: str, bits: int, symmetric: bool, group_size: int | None
) -> dict[str, QuantizedWeight]:
    """Write a tiny random model, whose down projections have a K of 80, and return its layers."""
    config = tiny_config(model_type, intermediate_size=80, dtype=dtype)
    tensors = tiny_tensors(config)
    weights = {
        name.removesuffix(".weight"): tensor
        for name, tensor in tensors.items()
        if name.endswith("_proj.weight")
    }
    layout = PackedLayout(
        {layer: weight.shape[1] for layer, weight in weights.items()},
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
    )
    quantized = {
        layer: rtn(
            weight,
            bits=bits,
            group_size=None if layer in layout.whole_row else group_size,
            symmetric=symmetric,
            scale_dtype=DTYPES[dtype],
        )
        for layer, weight in weights.items()
    }
    config["quantization_config"] = layout.quantization_config()
    with new_directory(directory) as partial:
        (partial / "config.json").write_text(json.dumps(config))
        with SafetensorsWriter(partial) as writer:
            for layer, weight in quantized.items():
                for kind, tensor in layout.pack(weight).items():
                    writer.add(f"{layer}.{kind}", tensor)
            for name, tensor in tensors.items():
                if name.removesuffix(".weight") not in quantized:
                    writer.add(name, tensor.astype(DTYPES[dtype]))
    return quantized


@pytest.mark.parametrize(
    ("dtype", "group_size"),
    [("float32", 32), ("float32", 16), ("float32", None), ("float16", 32), ("bfloat16", 32)],
)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_transformers_loads_what_we_write(tmp_path, model_type, bits, symmetric, group_size, dtype):
    """As it is, and to the bit: float32 weights are ours, narrow ones are ours rounded once.

    Groups of 32 divide a K of 64 but not of 80, 16 divides both, None is the whole row everywhere.
    qwen2 has biases.
    """
    quantized = write_quantized(tmp_path / "q", model_type, dtype, bits, symmetric, group_size)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "q", output_loading_info=True)
    assert not any(report.values()), report
    tokens = np.arange(12)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)[None]).logits[0]
    assert model.dtype == getattr(torch, dtype)
    for layer, ours in quantized.items():
        theirs = model.get_submodule(layer).weight
        expected = torch.from_numpy(ours.dequantize()).to(theirs.dtype)
        assert torch.equal(theirs, expected), layer

    if dtype == "float32":
        checkpoint = open_checkpoint(tmp_path / "q")
        decoder = Decoder(checkpoint, weight_reader(checkpoint))
        expected = decoder.logits(decoder.forward(tokens))
        bound = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(logits.numpy(), expected, rtol=0, atol=bound)
