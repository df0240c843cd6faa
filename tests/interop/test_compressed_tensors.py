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
from safetensors.numpy import save
from safetensors.torch import load
from transformers import AutoModelForCausalLM

from numbacalib.formats.bit_packing import pack_bits, unpack_bits
from numbacalib.formats.compressed_tensors import PackedLayout, pack, weight_reader
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


def decompressed(rows: int, channels: int, **settings) -> tuple[np.ndarray, np.ndarray]:
    """A layer's weight, and what compressed-tensors makes of it as it comes from a file."""
    weight = np.random.default_rng(rows).standard_normal((rows, channels)).astype(np.float32)
    layout = PackedLayout({"q": weight.shape}, **settings)
    settings["group_size"] = layout.group_sizes["q"]
    quantized = rtn(weight, **settings, scale_dtype=np.float32)
    tensors = load(save(pack(quantized)))
    (group,) = layout.quantization_config()["config_groups"].values()
    theirs = PackedQuantizationCompressor.decompress(
        tensors, QuantizationScheme.model_validate(group)
    )
    return quantized.dequantize(), theirs["weight"].numpy()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [32, 48, 128, None])
def test_compressed_tensors_decompresses_to_our_weights(bits, symmetric, group_size):
    settings = {"bits": bits, "group_size": group_size, "symmetric": symmetric}
    ours, theirs = decompressed(37, 96, **settings)
    np.testing.assert_array_equal(theirs, ours, strict=True)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [32, None])
@pytest.mark.parametrize("bits", range(2, 9))
def test_every_number_of_rows_is_read_or_refused(bits, group_size, symmetric):
    """Zero points are packed along the rows: whatever we write is read, and only 4 bits refused."""
    settings = {"bits": bits, "group_size": group_size, "symmetric": symmetric}
    for rows in range(1, 36):
        if bits == 4 and not symmetric and group_size and rows <= 8:
            with pytest.raises(ValueError, match=f"4-bit zero points of {rows} rows in 3 groups"):
                decompressed(rows, 96, **settings)
        else:
            ours, theirs = decompressed(rows, 96, **settings)
            np.testing.assert_array_equal(theirs, ours, strict=True)


def test_what_is_refused_cannot_be_read():
    """If this fails, compressed-tensors reads one word of 4-bit zero points: write them then."""
    weight = np.random.default_rng(0).standard_normal((8, 96)).astype(np.float32)
    quantized = rtn(weight, bits=4, group_size=32, symmetric=False, scale_dtype=np.float32)
    layout = PackedLayout({"q": (9, 96)}, bits=4, group_size=32, symmetric=False)
    (group,) = layout.quantization_config()["config_groups"].values()
    scheme = QuantizationScheme.model_validate(group)
    with pytest.raises(RuntimeError, match="must be 1 to view Int as Byte"):
        PackedQuantizationCompressor.decompress(load(save(pack(quantized))), scheme)


def test_config_is_understood_in_full():
    for symmetric in (False, True):
        layout = PackedLayout(
            {"q": (9, 96), "k": (9, 80)}, bits=3, group_size=32, symmetric=symmetric
        )
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
    """Write a tiny random model, K = 192 in its down projections and else 96; return its layers."""
    sizes = {"hidden_size": 96, "head_dim": 24, "intermediate_size": 192}
    config = tiny_config(model_type, **sizes, dtype=dtype)
    tensors = tiny_tensors(config)
    weights = {
        name.removesuffix(".weight"): tensor
        for name, tensor in tensors.items()
        if name.endswith("_proj.weight")
    }
    layout = PackedLayout(
        {layer: weight.shape for layer, weight in weights.items()},
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
    )
    quantized = {
        layer: rtn(
            weight,
            bits=bits,
            group_size=layout.group_sizes[layer],
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
                for kind, tensor in pack(weight).items():
                    writer.add(f"{layer}.{kind}", tensor)
            for name, tensor in tensors.items():
                if name.removesuffix(".weight") not in quantized:
                    writer.add(name, tensor.astype(DTYPES[dtype]))
    return quantized


@pytest.mark.parametrize(
    ("dtype", "group_size"),
    [
        ("float32", 32),
        ("float32", 128),
        ("float32", 64),
        ("float32", None),
        ("float16", 128),
        ("bfloat16", 64),
    ],
)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_transformers_loads_what_we_write(tmp_path, model_type, bits, symmetric, group_size, dtype):
    """As it is, and to the bit: float32 weights are ours, narrow ones are ours rounded once.

    Groups of 32 divide every K; of 128 asked for, 96 are taken everywhere; of 64, symmetric models have
    48 and 64, asymmetric ones 48; None is the whole row. qwen2 has biases.
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
