"""Models that are published in FP8 and MXFP4, read as the bfloat16 that they stand for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from models.described import write_described_checkpoint
from models.tiny import TEXT
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from numbacalib.formats.compressed_tensors import CompressedTensors
from numbacalib.models import Decoder, open_checkpoint
from numbacalib.quantizer import Settings, quantize

BLOCK = (16, 24)
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
Tensors = dict[str, NDArray[Any]]


def rewrite(model: Path, change: Callable[[Tensors], None], quantization: dict[str, Any]) -> Path:
    """Change the tensors of a checkpoint, and say in its configuration how they are stored."""
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    file = model / "config.json"
    config = json.loads(file.read_text()) | {"quantization_config": quantization}
    file.write_text(json.dumps(config))
    return model


def linears(tensors: Tensors) -> list[str]:
    found = (name for name, tensor in tensors.items() if tensor.ndim == 2)
    return [name for name in found if re.search(r"(_proj|_mqa)\.weight$", name)]


def in_blocks(weights: Tensors, block: tuple[int, int] | None) -> Callable[[Tensors], None]:
    """Store linear layers in FP8; `weights` gets what they stand for, by its definition."""

    def change(tensors: Tensors) -> None:
        for name in linears(tensors):
            wide = tensors[name].astype(np.float32)
            height, width = block or wide.shape
            scales = np.empty((-(-len(wide) // height), -(-wide.shape[1] // width)), np.float32)
            stored = np.empty(wide.shape, ml_dtypes.float8_e4m3fn)
            meant = np.empty(wide.shape, np.float32)
            for i, j in np.ndindex(scales.shape):
                own = np.s_[i * height : (i + 1) * height, j * width : (j + 1) * width]
                scales[i, j] = np.abs(wide[own]).max() / 448
                stored[own] = (wide[own] / scales[i, j]).astype(stored.dtype)
                meant[own] = stored[own].astype(np.float32) * scales[i, j]
            tensors[name] = stored
            tensors[f"{name}_scale_inv"] = scales if block else scales.reshape(())
            weights[name] = meant.astype(ml_dtypes.bfloat16)

    return change


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Latent attention, and a layer that predicts further tokens."""
    sizes = {"num_hidden_layers": 3, "num_nextn_predict_layers": 0}
    path = write_described_checkpoint(tmp_path / "model", "deepseek_v3", "bfloat16", **sizes)
    config = json.loads((path / "config.json").read_text())
    config |= {"num_hidden_layers": 2, "num_nextn_predict_layers": 1}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("block", [BLOCK, None])
def test_float8_with_a_factor_for_each_block(
    tmp_path: Path, model: Path, block: tuple[int, int] | None
) -> None:
    weights: Tensors = {}
    quantization = FP8 | {"weight_block_size": block}
    plain = open_checkpoint(model)
    others = {name: plain.tensor(name) for name in plain.names()}
    checkpoint = open_checkpoint(rewrite(model, in_blocks(weights, block), quantization))
    assert set(checkpoint.names()) == set(others)
    assert any(name.startswith("model.layers.2.") for name in weights)  # which is not run
    for name, expected in (others | weights).items():
        assert checkpoint.info(name) == (expected.shape, expected.dtype)
        assert checkpoint.stored_bytes(name) == expected.nbytes
        np.testing.assert_array_equal(checkpoint.tensor(name), expected)
        tiles = np.concatenate(list(checkpoint.tiles(name, 5)))
        np.testing.assert_array_equal(tiles, expected)
    assert checkpoint.file_bytes() == (model / "model.safetensors").stat().st_size
    assert "quantization_config" not in checkpoint.hf_config()


def test_float8_is_quantized_as_its_bfloat16_is(tmp_path: Path, model: Path) -> None:
    weights: Tensors = {}
    rewrite(model, in_blocks(weights, BLOCK), FP8 | {"weight_block_size": BLOCK})
    (tmp_path / "text.txt").write_text(TEXT * 4)
    options = {
        "text": [tmp_path / "text.txt"],
        "settings": Settings(group_size=8, samples=4, sequence_length=32),
    }
    quantize(model, tmp_path / "one", **options)
    wide = {name: open_checkpoint(model).tensor(name) for name in open_checkpoint(model).names()}
    config = json.loads((model / "config.json").read_text())
    del config["quantization_config"]
    (model / "config.json").write_text(json.dumps(config))
    save_file(wide, model / "model.safetensors", metadata={"format": "pt"})
    quantize(model, tmp_path / "other", **options)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "other"))
    assert set(one) == set(other)
    assert not any("scale_inv" in name for name in one)
    for name, tensor in one.items():
        np.testing.assert_array_equal(tensor.view(np.uint8), other[name].view(np.uint8))
    assert CompressedTensors().recognizes(open_checkpoint(tmp_path / "one"))


def value_of(code: int) -> float:
    """A number of E2M1: a bit of sign, two of exponent, one of mantissa."""
    sign, exponent, mantissa = code >> 3, code >> 1 & 3, code & 1
    size = mantissa / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2)
    return -size if sign else size


def in_float4(weights: Tensors) -> Callable[[Tensors], None]:
    """Put random MXFP4 of all experts in the place of those of each; `weights` gets what they stand for."""

    def change(tensors: Tensors) -> None:
        rng = np.random.default_rng(0)
        for layer in range(2):
            each = f"model.layers.{layer}.mlp.experts"
            found = [name for name in tensors if name.startswith(each)]
            count = 1 + max(int(name.removeprefix(f"{each}.").split(".")[0]) for name in found)
            shapes = {
                role: tensors[f"{each}.0.{role}_proj.weight"].shape for role in ("gate", "down")
            }
            for name in found:
                if name.endswith("weight"):
                    del tensors[name]
            for fused, role in (("gate_up_proj", "gate"), ("down_proj", "down")):
                rows, columns = shapes[role]
                rows *= 2 if role == "gate" else 1
                codes = rng.integers(0, 16, (count, rows, columns))
                exponents = rng.integers(120, 126, (count, rows, columns // 32))
                meant = np.vectorize(value_of)(codes)
                meant *= 2.0 ** (exponents - 127).repeat(32, axis=2)
                low, high = codes[..., ::2], codes[..., 1::2]
                packed = (low | high << 4).astype(np.uint8).reshape(*exponents.shape, 16)
                tensors[f"{each}.{fused}_blocks"] = packed
                tensors[f"{each}.{fused}_scales"] = exponents.astype(np.uint8)
                for expert in range(count):
                    parts = {"down": meant[expert]}
                    if role == "gate":
                        parts = {"gate": meant[expert, ::2], "up": meant[expert, 1::2]}
                    for part, values in parts.items():
                        name = f"{each}.{expert}.{part}_proj.weight"
                        weights[name] = values.astype(ml_dtypes.bfloat16)

    return change


def test_float4_of_all_experts(tmp_path: Path) -> None:
    sizes = {"intermediate_size": 32, "hidden_size": 64}
    model = write_described_checkpoint(tmp_path / "model", "gpt_oss", "bfloat16", **sizes)
    weights: Tensors = {}
    rewrite(model, in_float4(weights), {"quant_method": "mxfp4", "modules_to_not_convert": ["x"]})
    checkpoint = open_checkpoint(model)
    assert len(weights) == 2 * 3 * 3
    for name, expected in weights.items():
        assert checkpoint.info(name) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(checkpoint.tensor(name), expected)
    assert not [name for name in checkpoint.names() if "blocks" in name or "scales" in name]
    assert np.isfinite(Decoder(checkpoint).loss([[1, 2, 3, 4]]))


def without_scales(tensors: Tensors) -> None:
    in_blocks({}, BLOCK)(tensors)
    del tensors["model.layers.0.mlp.up_proj.weight_scale_inv"]


@pytest.mark.parametrize(
    ("change", "quantization", "message"),
    [
        (
            without_scales,
            {"weight_block_size": BLOCK},
            r"up_proj.weight: expected .*weight_scale_inv beside it, found none$",
        ),
        (
            in_blocks({}, BLOCK),
            {"weight_block_size": [16, 16]},
            r"weight_scale_inv: expected \[\d+, \d+\] factors of a matrix \[\d+, \d+\], got \[\d+, \d+\]$",
        ),
        (
            in_blocks({}, BLOCK),
            {"fmt": "e5m2"},
            r"quantization_config.fmt: expected e4m3, got 'e5m2'$",
        ),
        (in_blocks({}, BLOCK), {"blocks": 1}, r"quantization_config.blocks: expected no key"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    model: Path, change: Callable[[Tensors], None], quantization: dict[str, Any], message: str
) -> None:
    rewrite(model, change, FP8 | quantization)
    with pytest.raises(ValueError, match=message) as caught:
        open_checkpoint(model)
    assert "\n" not in str(caught.value)
