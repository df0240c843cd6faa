"""MLX checkpoints loaded by mlx-lm, on the CPU."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from clients.tiny_llama import TOKENS, assert_same_logits, write_quantized
from mlx_lm import load
from mlx_lm.utils import load_model
from models.gguf_models import write_model

from numbacalib.formats import FORMATS, LayerGrid
from numbacalib.methods import rtn
from numbacalib.models import open_checkpoint
from numbacalib.quantizer import Settings, quantize

mx.set_default_device(mx.cpu)

GROUPS_OF_32 = Settings(method="rtn", bits=4, group_size=32)
BOUND = 2e-2
"""Of the largest logit: mlx computes in the checkpoint's 16 bits."""


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx_lm(tmp_path, bits, size, symmetric):
    settings = {"bits": bits, "group_size": size, "symmetric": symmetric}
    directory = write_quantized(tmp_path, "mlx", **settings)
    model, _ = load(str(directory))
    kinds = {type(module).__name__ for _, module in model.named_modules()}
    assert "QuantizedLinear" in kinds
    logits = model(mx.array(TOKENS)[None])[0].astype(mx.float32)
    assert_same_logits(np.array(logits), directory, BOUND)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx_dequantizes_to_our_weights(tmp_path, bits):
    """Codes, scales and biases as mlx reads them, in float32."""
    settings = {"bits": bits, "group_size": 64}
    checkpoint = open_checkpoint(write_quantized(tmp_path, "mlx", **settings))
    for name, layer in FORMATS["mlx"].layers(checkpoint).items():
        parts = [mx.array(checkpoint.tensor(f"{name}.{part}")) for part in FORMATS["mlx"].parts]
        wide = [part.astype(mx.float32) for part in parts[1:]]
        theirs = np.array(mx.dequantize(parts[0], *wide, **settings))
        ours = layer.dequantize()
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-6 * abs(ours).max())


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_we_read_what_mlx_quantizes(bits):
    """Negative scales and real biases, as mlx finds them."""
    weight = np.random.default_rng(0).standard_normal((24, 128)).astype(np.float16)
    parts = mx.quantize(mx.array(weight), group_size=32, bits=bits)
    tensors = dict(zip(FORMATS["mlx"].parts, map(np.array, parts), strict=True))
    theirs = np.array(mx.dequantize(*parts, group_size=32, bits=bits).astype(mx.float32))
    read = FORMATS["mlx"].unpack(tensors, LayerGrid(bits, 32, False, np.dtype(np.float16)))
    np.testing.assert_allclose(read.dequantize(), theirs, rtol=0, atol=2**-10 * abs(theirs).max())
    plain = rtn(weight, bits=bits, group_size=32)
    assert abs(read.dequantize() - weight).mean() < 2 * abs(plain.dequantize() - weight).mean()


def assert_mlx_lm_agrees(directory):
    model, _ = load(str(directory))
    logits = model(mx.array(TOKENS)[None])[0].astype(mx.float32)
    assert_same_logits(np.array(logits), directory, BOUND)
    return {name: type(module).__name__ for name, module in model.named_modules()}


def test_widths_by_layer(tmp_path):
    layer_bits = {"*.down_proj": 8, "*.v_proj": 3, "model.layers.0.mlp.up_proj": 6}
    settings = {"bits": 4, "group_size": 32, "layer_bits": layer_bits}
    assert_mlx_lm_agrees(write_quantized(tmp_path, "mlx", **settings))


OTHERS = {
    "cohere2": {"layer_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": True},
    "gemma": {"rms_norm_eps": 1e-6, "tie_word_embeddings": True},
    "gemma3_text": {"rms_norm_eps": 1e-6, "rope_theta": 1e6},
    "hunyuan_v1_dense": {"rms_norm_eps": 1e-5, "rope_theta": 1e4},
    "nemotron": {"norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "relu2"},
    "olmo2": {"rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": False},
    "phi3": {"rms_norm_eps": 1e-5, "rope_theta": 1e4},
    "smollm3": {"rms_norm_eps": 1e-6, "rope_theta": 2e6, "tie_word_embeddings": True},
    "starcoder2": {"norm_epsilon": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": True},
}
"""Architectures, with keys that mlx-lm wants in a configuration."""


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures(tmp_path, name):
    source = write_model(tmp_path / "model", name, **OTHERS[name])
    quantize(source, tmp_path / "out", settings=GROUPS_OF_32, formats=["mlx"])
    model, _ = load_model(tmp_path / "out")
    logits = model(mx.array(TOKENS)[None])[0].astype(mx.float32)
    assert_same_logits(np.array(logits), tmp_path / "out", 1e-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4"])
def test_fp4_modes(tmp_path, mode, dtype):
    directory = write_quantized(tmp_path, f"mlx:{mode}", dtype=dtype)
    kinds = assert_mlx_lm_agrees(directory)
    assert kinds["model.layers.0.mlp.down_proj"] == "QuantizedLinear"
    checkpoint = open_checkpoint(directory)
    for name, layer in FORMATS[f"mlx:{mode}"].layers(checkpoint).items():
        parts = [mx.array(checkpoint.tensor(f"{name}.{part}")) for part in ("weight", "scales")]
        size = {"mxfp4": 32, "nvfp4": 16}[mode]
        theirs = mx.dequantize(*parts, group_size=size, bits=4, mode=mode, dtype=mx.float32)
        np.testing.assert_array_equal(np.array(theirs), layer.dequantize())


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4"])
def test_we_read_fp4_that_mlx_quantizes(mode):
    weight = np.random.default_rng(0).standard_normal((24, 128)).astype(np.float32)
    size = {"mxfp4": 32, "nvfp4": 16}[mode]
    parts = mx.quantize(mx.array(weight), group_size=size, bits=4, mode=mode)
    form = FORMATS[f"mlx:{mode}"]
    tensors = dict(zip(form.parts, map(np.array, parts), strict=True))
    grid = LayerGrid(4, size, True, np.dtype(np.float32), element="e2m1")
    theirs = mx.dequantize(*parts, group_size=size, bits=4, mode=mode, dtype=mx.float32)
    np.testing.assert_array_equal(form.unpack(tensors, grid).dequantize(), np.array(theirs))


@pytest.mark.parametrize("form", ["mlx", "mlx:mxfp4", "mlx:nvfp4"])
@pytest.mark.parametrize("tied", [False, True])
def test_heads_and_embeddings(tmp_path, form, tied):
    directory = write_quantized(
        tmp_path,
        form,
        model={"tie_word_embeddings": tied},
        lm_head=True,
        embeddings=True,
    )
    kinds = assert_mlx_lm_agrees(directory)
    assert kinds["model.embed_tokens"] == "QuantizedEmbedding"
    assert tied or kinds["lm_head"] == "QuantizedLinear"


NAMED = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False}
"""Keys that mlx-lm wants in every configuration."""


@pytest.mark.parametrize("form", ["mlx", "mlx:mxfp4", "mlx:nvfp4"])
@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_experts(tmp_path, name, form):
    source = write_model(tmp_path / "model", name, **NAMED)
    quantize(source, tmp_path / "out", settings=Settings(method="rtn"), formats=[form])
    model, _ = load_model(tmp_path / "out")
    kinds = {type(module).__name__ for _, module in model.named_modules()}
    assert "QuantizedSwitchLinear" in kinds
    logits = model(mx.array(TOKENS)[None])[0].astype(mx.float32)
    assert_same_logits(np.array(logits), tmp_path / "out", 1e-4)


def test_what_mlx_lm_does_not_load_of_others(tmp_path, monkeypatch):
    """If this fails, it has come to: say so in docs/formats.md, and in `MlxDirectory.mixtures`."""
    own = {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
    source = write_model(tmp_path / "model", "qwen3_moe", **NAMED, **own)
    options = {"settings": Settings(method="rtn"), "formats": ["mlx"]}
    with pytest.raises(
        ValueError, match="format: expected one whose clients load the experts of a q"
    ):
        quantize(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(type(FORMATS["mlx"]), "mixtures", None)
    quantize(source, tmp_path / "out", **options)
    with pytest.raises(ValueError, match="parameters not in model"):
        load_model(tmp_path / "out")
