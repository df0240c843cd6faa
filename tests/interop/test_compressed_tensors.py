"""The checkpoints that we write, read by compressed-tensors and transformers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.compressors.pack_quantized import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from models.tiny import write_tiny_checkpoint
from safetensors.numpy import save
from safetensors.torch import load
from transformers import AutoModelForCausalLM

from numbacalib.formats import LayerGrid, dequantized
from numbacalib.formats.bit_packing import pack_bits, unpack_bits
from numbacalib.formats.compressed_tensors import CompressedTensors
from numbacalib.formats.output_directory import new_directory
from numbacalib.formats.safetensors_format import Left
from numbacalib.methods import QuantizedWeight, rtn
from numbacalib.models import Decoder, open_checkpoint
from numbacalib.models.checkpoint import TensorInfo

FORMAT = CompressedTensors()


def grids_of(shapes, *, bits, group_size, symmetric):
    weights = {name: TensorInfo(shape, np.dtype(np.float32)) for name, shape in shapes.items()}
    asked = LayerGrid(bits, group_size, symmetric, np.dtype(np.float32))
    return FORMAT.grids(weights, dict.fromkeys(shapes, asked))


def config_of(grids):
    return FORMAT.configuration(grids, Left())["quantization_config"]


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
    grids = grids_of({"q": weight.shape}, **settings)
    settings["group_size"] = grids["q"].group_size
    quantized = rtn(weight, **settings, scale_dtype=np.float32)
    tensors = load(save(FORMAT.pack(quantized)))
    (group,) = config_of(grids)["config_groups"].values()
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
    grids = grids_of({"q": (9, 96)}, bits=4, group_size=32, symmetric=False)
    (group,) = config_of(grids)["config_groups"].values()
    scheme = QuantizationScheme.model_validate(group)
    with pytest.raises(RuntimeError, match="must be 1 to view Int as Byte"):
        PackedQuantizationCompressor.decompress(load(save(FORMAT.pack(quantized))), scheme)


def test_config_is_understood_in_full():
    for symmetric in (False, True):
        shapes = {"q": (9, 96), "k": (9, 80)}
        config = config_of(grids_of(shapes, bits=3, group_size=32, symmetric=symmetric))
        config.pop("dequantize", None)
        parsed = json.loads(QuantizationConfig.model_validate(config).model_dump_json())
        for name, group in config["config_groups"].items():
            weights = group.pop("weights")
            assert parsed["config_groups"][name].items() >= group.items()
            assert parsed["config_groups"][name]["weights"].items() >= weights.items()
        del config["config_groups"]
        assert parsed.items() >= config.items()


def write_quantized(
    directory: Path, model_type: str, dtype: str, asked: LayerGrid, wide: Sequence[str] = ()
) -> dict[str, QuantizedWeight]:
    """Write a tiny random model, K = 192 in its down projections and else 96; return its layers.

    Layers with one of `wide` in their names have 8 bits.
    """
    sizes = {"hidden_size": 96, "head_dim": 24, "intermediate_size": 192}
    source = open_checkpoint(
        write_tiny_checkpoint(directory.with_name("source"), model_type, dtype, **sizes)
    )
    layers = [name.removesuffix(".weight") for name in source.names() if "_proj.weight" in name]
    asked_of = {
        layer: replace(asked, bits=8) if any(part in layer for part in wide) else asked
        for layer in layers
    }
    grids = FORMAT.grids({layer: source.info(f"{layer}.weight") for layer in layers}, asked_of)
    quantized = {}
    with new_directory(directory) as partial, FORMAT.writer(partial, source, grids) as writer:
        for layer, grid in grids.items():
            quantized[layer] = rtn(
                source.tensor(f"{layer}.weight"),
                bits=grid.bits,
                group_size=grid.group_size,
                symmetric=grid.symmetric,
                scale_dtype=grid.scale_dtype,
            )
            writer.add_layer(layer, quantized[layer])
    return quantized


def loaded(directory: Path):
    """The model as transformers loads it, with nothing missing or left over."""
    model, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), report
    return model


def test_transformers_loads_widths_by_layer(tmp_path):
    asked = LayerGrid(4, 32, True, np.dtype(np.float32))
    quantized = write_quantized(tmp_path / "q", "llama", "float32", asked, ["down", "k_proj"])
    assert {weight.bits for weight in quantized.values()} == {4, 8}
    model = loaded(tmp_path / "q")
    model(torch.arange(4)[None])  # weights are decompressed in the first pass
    for layer, ours in quantized.items():
        theirs = model.get_submodule(layer).weight
        assert torch.equal(theirs, torch.from_numpy(ours.dequantize())), layer


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
    asked = LayerGrid(bits, group_size, symmetric, np.dtype(np.float32))
    quantized = write_quantized(tmp_path / "q", model_type, dtype, asked)
    model = loaded(tmp_path / "q")
    tokens = np.arange(12)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)[None]).logits[0]
    assert model.dtype == getattr(torch, dtype)
    for layer, ours in quantized.items():
        theirs = model.get_submodule(layer).weight
        expected = torch.from_numpy(ours.dequantize()).to(theirs.dtype)
        assert torch.equal(theirs, expected), layer

    if dtype == "float32":
        decoder = Decoder(dequantized(open_checkpoint(tmp_path / "q")))
        expected = decoder.logits(decoder.forward(tokens))
        bound = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(logits.numpy(), expected, rtol=0, atol=bound)
