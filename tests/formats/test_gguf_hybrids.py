"""GGUF files of decoders with layers of two kinds: other orders, layers in two tensors, pieces."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import tokenizers
from formats.test_gguf_models import logits, written
from models.gguf_models import write_model
from models.tiny import TEXT
from safetensors.numpy import save_file

from numbacalib.formats.gguf_layers import BlockLayers
from numbacalib.models import open_checkpoint
from numbacalib.models.gguf_file import GGUFFile
from numbacalib.models.tensor_names import module_name
from numbacalib.quantizer import Settings


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q8_0", "MXFP4"])
def test_heads_of_values_stand_in_another_order(tmp_path, mix):
    """Blocks are runs of the file's columns: each head of keys has its first heads of values there."""
    checkpoint = written(write_model(tmp_path / "m", "qwen3_5_text"), tmp_path / "out", mix)
    (name,) = [name for name in checkpoint.names() if "layers.0.linear_attn.out_proj" in name]
    tensors = {each.name: each for each in gguf.GGUFReader(checkpoint.path).tensors}
    stored = tensors["blk.0.ssm_out.weight"]
    values = gguf.quants.dequantize(stored.data, stored.tensor_type)
    first, second, third, fourth = (values[:, begin : begin + 64] for begin in range(0, 256, 64))
    expected = np.hstack([first, third, second, fourth])
    np.testing.assert_array_equal(checkpoint.tensor(name), expected)
    layer = BlockLayers(checkpoint)[name.removesuffix(".weight")]
    np.testing.assert_allclose(layer.dequantize(), expected, rtol=0, atol=1e-7)  # of real zeros


def test_a_layer_is_two_tensors_of_one_type(tmp_path):
    checkpoint = written(write_model(tmp_path / "m", "qwen3_next"), tmp_path / "out", "Q4_K_M")
    entries = GGUFFile(checkpoint.path).tensors
    for block in (0, 2):
        both = entries[f"blk.{block}.attn_qkv.weight"], entries[f"blk.{block}.attn_gate.weight"]
        assert [entry.shape for entry in both] == [(512, 256), (256, 256)]
        assert both[0].kind == both[1].kind
        name = f"model.layers.{block}.linear_attn.in_proj_qkvz"
        layer = BlockLayers(checkpoint)[name]
        weight = checkpoint.tensor(f"{name}.weight")
        np.testing.assert_allclose(layer.dequantize(), weight, rtol=0, atol=1e-7)  # of real zeros


HYBRIDS = [
    *("granitemoehybrid", "granitemoehybrid-attention", "granitemoehybrid-experts"),
    *("granitemoehybrid-attention-experts", "lfm2", "lfm2_moe"),
    *("nemotron_h", "nemotron_h-experts", "nemotron_h-latent"),
]


@pytest.mark.parametrize("name", HYBRIDS)
def test_what_is_not_rounded_is_what_it_was(tmp_path, name):
    """The logits are those of the Hugging Face directory with the rounded weights put into it."""
    source = write_model(tmp_path / "m", name)
    settings = Settings(method="rtn", skip=("model.layers.[!1].*",))
    checkpoint = written(source, tmp_path / "out", settings=settings)
    original = open_checkpoint(source)
    assert set(checkpoint.names()) == set(original.names())
    tensors = {}
    for tensor in original.names():
        values = checkpoint.tensor(tensor)
        tensors[module_name(tensor, original.config)] = np.array(values)
        if checkpoint.kind(tensor).dtype is not None:
            rounded = 2**-22 if tensor.endswith("A_log") else 0  # an exponential, and its logarithm
            np.testing.assert_allclose(
                values, original.tensor(tensor), rtol=0, atol=rounded, err_msg=tensor
            )
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    expected = logits(open_checkpoint(source))
    np.testing.assert_allclose(
        logits(checkpoint), expected, rtol=0, atol=1e-6 * np.abs(expected).max()
    )


def test_an_mlp_beside_experts_has_names_of_its_own(tmp_path):
    """Gates and ups are one layer in the directory, and two tensors in the file."""
    for name, end in (("granitemoehybrid", ""), ("granitemoehybrid-experts", "_shexp")):
        checkpoint = written(write_model(tmp_path / name, name), tmp_path / f"{name}-out")
        entries = GGUFFile(checkpoint.path).tensors
        width = 256 if end else 512
        for role, shape in (("gate", (width, 256)), ("up", (width, 256)), ("down", (256, width))):
            assert entries[f"blk.0.ffn_{role}{end}.weight"].shape == shape
        assert ("blk.0.ffn_gate.weight" in entries) == (not end)


def test_shapes_of_mamba_are_those_of_llama_cpp(tmp_path):
    checkpoint = written(write_model(tmp_path / "m", "nemotron_h"), tmp_path / "out", "Q4_K_M")
    entries = GGUFFile(checkpoint.path).tensors
    expected = {
        "ssm_a": (8, 1),
        "ssm_d": (8, 1),
        "ssm_norm.weight": (2, 128),
        "ssm_conv1d.weight": (384, 4),
        "ssm_dt.bias": (8,),
    }
    for name, shape in expected.items():
        entry = entries[f"blk.0.{name}"]
        assert (entry.shape, entry.kind.name) == (shape, "F32")
    options = GGUFFile(checkpoint.path).metadata.under("nemotron_h.")
    assert options.integers("attention.head_count_kv").tolist() == [0, 0, 0, 1, 0]
    assert options.integers("feed_forward_length").tolist() == [0, 512, 512, 0, 512]


@pytest.mark.parametrize("name", ["gemma4_text", "qwen3_5_text", "qwen3_next", *HYBRIDS])
def test_a_file_is_a_source_of_another(tmp_path, name):
    """Weights that are in blocks already stay the same, whatever the order in which they are stored."""
    first = written(write_model(tmp_path / "m", name), tmp_path / "one")
    again = written(first.path, tmp_path / "two")
    assert again.config == first.config
    for tensor in first.names():
        one, two = first.tensor(tensor), again.tensor(tensor)
        step = abs(one).max() / 127 if one.ndim == 2 else 1e-6
        np.testing.assert_allclose(two, one, rtol=0, atol=step, err_msg=tensor)


def gemma_tokenizer():
    """Pieces with bytes for the others, merged by rank, whose newlines no merge joins to letters."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "\n", "\n\n", "▁"]
    pieces += [chr(letter) for letter in range(97, 123)]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("\n", "\n"), ("▁", "a"), ("a", "b")]
    pieces += [left + right for left, right in merges if left + right != "\n\n"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    return tokenizer


def test_a_tokenizer_of_pieces_and_merges(tmp_path):
    source = write_model(tmp_path / "m", "gemma4_text-experts")
    own = gemma_tokenizer()
    own.save(str(source / "tokenizer.json"))
    checkpoint = written(source, tmp_path / "out")
    metadata = GGUFFile(checkpoint.path).metadata
    assert metadata.string("tokenizer.ggml.model") == "gemma4"
    for text in (TEXT, "the  a\n\n\nthe ab\n 東京 thea"):
        assert checkpoint.tokenizer.encode(text).ids == own.encode(text).ids
        assert checkpoint.tokenizer.decode(own.encode(text).ids) == text
