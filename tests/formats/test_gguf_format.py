"""GGUF files of whole models, from Hugging Face directories and GGUF files."""

from __future__ import annotations

import json
import logging

import gguf
import numpy as np
import pytest
from models.tiny import TEXT, random_tokens, tiny_config, write_tiny_checkpoint
from models.tiny_gguf import tokenizer_metadata, write_gguf
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers

from numbacalib.formats import FORMATS
from numbacalib.formats.gguf import GGUF, FileWriter
from numbacalib.formats.gguf_mixes import MIXES, Layers, tensor_type_of
from numbacalib.models import Decoder, open_checkpoint
from numbacalib.models.gguf_file import GGUFFile
from numbacalib.quantizer import Settings, quantize

WHOLE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
"""Sizes whose rows are whole blocks of 256."""
PLAIN = Settings(method="rtn")


def written(model, output, mix="Q4_K_M", settings=PLAIN, **options):
    quantize(model, output, settings=settings, formats=[f"gguf:{mix}"], **options)
    (file,) = output.iterdir()
    assert file.name == f"model-{mix}.gguf"
    return open_checkpoint(file)


def logits(checkpoint):
    decoder = Decoder(checkpoint)
    return np.asarray(decoder.logits(decoder.forward(random_tokens(1, 16))))


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_file_holds_the_model(tmp_path, kind, tied):
    source = write_tiny_checkpoint(tmp_path / "m", kind, tie_word_embeddings=tied, **WHOLE)
    checkpoint = written(source, tmp_path / "out", "Q8_0")
    original = open_checkpoint(source)
    ours, theirs = checkpoint.config, original.config
    assert set(checkpoint.names()) == set(original.names())
    for key in ("hidden_size", "num_layers", "num_kv_heads", "rope", "sliding_windows", "qk_norm"):
        assert getattr(ours, key) == getattr(theirs, key), key
    for text in (TEXT, "don't\n\n 123 東京", "a<|endoftext|>b"):
        assert checkpoint.tokenizer.encode(text).ids == original.tokenizer.encode(text).ids
    for name in original.names():
        stored, weight = checkpoint.tensor(name), original.tensor(name)
        step = np.abs(weight).max() / 127
        np.testing.assert_allclose(stored, weight, rtol=0, atol=0 if weight.ndim == 1 else step)
    expected = logits(original)
    np.testing.assert_allclose(logits(checkpoint), expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize("mix", ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_S", "Q6_K", "Q4_0", "Q5_1"])
def test_layers_come_back_as_they_were_written(tmp_path, mix, monkeypatch):
    """Codes, scales and zeros: what methods chose is what the file has, rows of heads in order."""
    kept = {}

    def keep(self, name, quantized, add=FileWriter.add_layer):
        kept[name] = quantized
        return add(self, name, quantized)

    monkeypatch.setattr(FileWriter, "add_layer", keep)
    source = write_tiny_checkpoint(tmp_path / "m", num_hidden_layers=4, **WHOLE)
    checkpoint = written(source, tmp_path / "out", mix)
    layers = FORMATS[f"gguf:{mix}"].layers(checkpoint)
    assert len(kept) == 7 * 4 + 1  # and the head
    for name, quantized in kept.items():
        back = layers[name]
        np.testing.assert_array_equal(back.codes, quantized.codes)
        np.testing.assert_array_equal(back.scales, quantized.scales)
        np.testing.assert_allclose(back.zeros, quantized.zeros, rtol=1e-6)
        assert layers.shape(name) == quantized.codes.shape
        values = checkpoint.tensor(f"{name}.weight")
        np.testing.assert_allclose(back.dequantize(), values, rtol=1e-5, atol=1e-6)


def test_gptq_chooses_codes_on_what_is_stored(tmp_path):
    """Loss of each layer below that of rounding to the same blocks' nearest."""
    (tmp_path / "text").write_text(TEXT * 20)
    source = write_tiny_checkpoint(tmp_path / "m", **WHOLE)
    losses = {}
    for method in ("gptq", "rtn"):
        settings = Settings(method=method, ranges="weighted", samples=8, sequence_length=64)
        reports = quantize(
            source,
            tmp_path / method,
            text=[tmp_path / "text"],
            settings=settings,
            formats=["gguf:Q2_K"],
        ).layers
        losses[method] = [report.loss for report in reports]
        assert {report.bits for report in reports} == {2, 3, 6}
        assert all(report.stored_bytes > 0 for report in reports)
    # later blocks have other inputs
    assert losses["gptq"][0] < 0.8 * losses["rtn"][0]


def test_a_gguf_source_keeps_its_metadata_to_the_byte(tmp_path):
    extra = tokenizer_metadata() | {"general.author": "some body", "general.tags": ["a", "ü"]}
    path = tmp_path / "source.gguf"
    write_gguf(path, tiny_config(**WHOLE), extra=extra)
    checkpoint = written(path, tmp_path / "out", "Q3_K_M")
    own = {"general.file_type", "general.quantization_version"}
    before, after = (GGUFFile(file).metadata_bytes() for file in (path, checkpoint.path))
    assert {key: after[key] for key in before if key not in own} == {
        key: value for key, value in before.items() if key not in own
    }
    reader = gguf.GGUFReader(checkpoint.path)
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q3_K_M
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.0.ffn_down.weight"] == "Q4_K"
    assert types["blk.0.attn_norm.weight"] == "F32"


def test_rope_divisors_are_written(tmp_path):
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    source = write_tiny_checkpoint(tmp_path / "m", rope_scaling=scaling, rope_theta=5e5, **WHOLE)
    checkpoint = written(source, tmp_path / "out")
    assert checkpoint.config.rope_scaling["rope_type"] == "llama3"
    assert checkpoint.config.rope_scaling["factor"] == pytest.approx(8)
    # and again, from what was written
    again = written(checkpoint.path, tmp_path / "again")
    assert again.config.rope_scaling == checkpoint.config.rope_scaling


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "attention_factor": 1.3,
            "beta_fast": 16.0,
        },
    ],
)
def test_rope_scaling_is_written(tmp_path, scaling):
    source = write_tiny_checkpoint(tmp_path / "m", rope_scaling=scaling, **WHOLE)
    checkpoint = written(source, tmp_path / "out", "Q8_0")
    expected = logits(open_checkpoint(source))
    np.testing.assert_allclose(logits(checkpoint), expected, atol=0.05 * np.abs(expected).max())


def test_rows_of_no_whole_blocks_get_types_in_blocks_of_32(tmp_path, caplog):
    source = write_tiny_checkpoint(tmp_path / "m")
    with caplog.at_level(logging.WARNING, "numbacalib"):
        checkpoint = written(source, tmp_path / "out")
    kinds = {checkpoint.kind(name).name for name in checkpoint.names()}
    assert kinds == {"F32", "Q5_0", "Q8_0"}
    assert "rows that are not a multiple of 256 (output.weight: K = 64)" in caplog.text


def test_mixes_give_more_bits_where_llama_cpp_does():
    layers = Layers(32, 8, False)
    kinds = {
        mix: [tensor_type_of(mix, f"blk.{i}.ffn_down.weight", 256, layers) for i in (0, 5, 6, 31)]
        for mix in ("Q4_K_M", "Q3_K_M", "Q2_K", "Q4_0")
    }
    assert kinds == {
        "Q4_K_M": ["Q6_K", "Q4_K", "Q6_K", "Q6_K"],
        "Q3_K_M": ["Q5_K", "Q4_K", "Q4_K", "Q4_K"],
        "Q2_K": ["Q3_K"] * 4,
        "Q4_0": ["Q4_1", "Q4_0", "Q4_0", "Q4_0"],
    }
    assert tensor_type_of("Q2_K", "blk.9.attn_v.weight", 256, layers) == "Q4_K"
    for mix in ("Q2_K", "Q4_0"):  # whose files `test_layers_come_back_as_they_were_written` reads
        assert tensor_type_of(mix, "output.weight", 256, layers) == "Q6_K"
    assert tensor_type_of("Q2_K", "token_embd.weight", 256, layers) == "Q2_K"
    assert tensor_type_of("Q2_K", "token_embd.weight", 256, layers._replace(tied=True)) == "Q6_K"
    assert {GGUF(mix).name for mix in MIXES} <= set(FORMATS)


def refused(model, output, match, **options):
    with pytest.raises(ValueError, match=match):
        written(model, output, **options)
    assert not output.exists()


def test_what_gguf_cannot_hold_is_refused_before_any_work(tmp_path):
    dynamic = {"rope_type": "dynamic", "factor": 2.0}
    source = write_tiny_checkpoint(tmp_path / "dynamic", rope_scaling=dynamic)
    refused(
        source,
        tmp_path / "out",
        "rope_scaling: expected default, linear, yarn, llama3 or longrope of a llama in GGUF, got dyn",
    )
    source = write_tiny_checkpoint(tmp_path / "narrow", intermediate_size=80)
    refused(
        source, tmp_path / "out", "down_proj: expected K a multiple of 32, got 80: skip the layer"
    )
    source = write_tiny_checkpoint(tmp_path / "plain")
    message = "refit: expected False where the format fixes the grid"
    (tmp_path / "text").write_text(TEXT)
    options = {"text": [tmp_path / "text"], "settings": Settings(refit=True)}
    wide = write_tiny_checkpoint(tmp_path / "wide", **WHOLE)
    refused(wide, tmp_path / "out", message, mix="Q4_K_M", **options)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("e", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save(str(source / "tokenizer.json"))
    refused(source, tmp_path / "out", "pre_tokenizer: expected text split in a way that GGUF has")


def test_special_tokens_and_the_chat_template_are_kept(tmp_path):
    source = write_tiny_checkpoint(tmp_path / "m", **WHOLE)
    config = json.loads((source / "tokenizer_config.json").read_text())
    config |= {"pad_token": {"content": "<|endoftext|>"}, "chat_template": "{{ messages }}"}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    checkpoint = written(source, tmp_path / "out")
    files = checkpoint.tokenizer_files()
    kept = json.loads(files["tokenizer_config.json"])
    assert kept["pad_token"] == kept["bos_token"] == "<|endoftext|>"
    assert kept["chat_template"] == "{{ messages }}"
    (source / "chat_template.jinja").write_text("{{ other }}")
    checkpoint = written(source, tmp_path / "second")
    kept = json.loads(checkpoint.tokenizer_files()["tokenizer_config.json"])
    assert kept["chat_template"] == "{{ other }}"


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_is_rounded_with_the_weights_of_its_inputs(tmp_path, tied):
    """What the final norm gives: less of the outputs' error than by a search without."""
    (tmp_path / "text").write_text(TEXT * 20)
    source = write_tiny_checkpoint(tmp_path / "m", tie_word_embeddings=tied, **WHOLE)
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"] = np.exp(np.random.default_rng(0).normal(0, 2, 256))
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float32)
    save_file(tensors, source / "model.safetensors")
    settings = Settings(samples=8, sequence_length=64)
    report = quantize(
        source, tmp_path / "out", text=[tmp_path / "text"], settings=settings, formats=["gguf:Q2_K"]
    )
    head = "model.embed_tokens" if tied else "lm_head"
    (own,) = (layer for layer in report.layers if layer.name == head)
    assert own.tokens == 8 * 64
    plain = written(source, tmp_path / "plain", "Q2_K")
    (file,) = (tmp_path / "out").iterdir()
    original = tensors[f"{head}.weight"]
    factors = tensors["model.norm.weight"] ** 2  # inputs are of one size before the norm's weight
    errors = [
        (factors * (checkpoint.tensor(f"{head}.weight") - original) ** 2).sum()
        for checkpoint in (open_checkpoint(file), plain)
    ]
    assert errors[0] < 0.9 * errors[1]
    with pytest.raises(
        ValueError, match=f"skip: expected layers of blocks with gguf:Q2_K, got {head}"
    ):
        written(source, tmp_path / "other", "Q2_K", Settings(method="rtn", skip=(head,)))
