"""llama.cpp loads the GGUF files that are written, and computes what our weights say.

Its activations are rounded to 8 bits, ours are float32: logits agree within `BOUND` of the largest.
"""

from __future__ import annotations

import math

import gguf
import numpy as np
import pytest
from clients.llama_cpp.libllama import Llama, Model
from models.gguf_models import LLAMA3, MODELS, YARN, write_model
from models.tiny import TEXT, random_tokens, tiny_config, write_tiny_checkpoint
from models.tiny_gguf import tokenizer_metadata, write_gguf

from numbacalib.formats.gguf_mixes import MIXES, Layers, file_type, tensor_type_of
from numbacalib.models import Decoder, open_checkpoint
from numbacalib.models.gguf_file import GGUFFile
from numbacalib.quantizer import Settings, quantize

BOUND = 0.04
PLAIN = Settings(method="rtn")
WHOLE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}


@pytest.fixture(scope="module")
def llama():
    return Llama()


def agree(llama, model, output, mix, settings, share=1.0):
    """Quantize, and compare logits and tokens of llama.cpp with ours over the same file.

    `share` is that of the tokens whose logits must be within the bound: rounded activations send some to
    other experts.
    """
    quantize(model, output, settings=settings, formats=[f"gguf:{mix}"])
    (file,) = output.iterdir()
    checkpoint = open_checkpoint(file)
    tokens = random_tokens(1, 48)
    decoder = Decoder(checkpoint)
    ours = np.asarray(decoder.logits(decoder.forward(tokens)))[0]
    with Model(llama, file, tokens.size) as loaded:  # whose context chooses longrope's factors
        theirs = loaded.logits(tokens[0])
        for text in (TEXT, "don't DON'T\n\n  x=12345; 東京 🙂"):
            assert loaded.tokenize(text) == checkpoint.tokenizer.encode(text).ids
    errors = np.abs(theirs - ours).max(axis=1) / np.abs(ours).max()
    assert (errors < BOUND).mean() >= share, errors


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("sizes", [{}, WHOLE], ids=["blocks of 32", "blocks of 256"])
def test_llama_cpp_computes_what_our_weights_say(llama, tmp_path, mix, sizes):
    source = write_tiny_checkpoint(tmp_path / "m", **sizes)
    agree(llama, source, tmp_path / "out", mix, PLAIN)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_architectures(llama, tmp_path, kind, tied):
    source = write_tiny_checkpoint(tmp_path / "m", kind, tie_word_embeddings=tied, **WHOLE)
    agree(llama, source, tmp_path / "out", "Q6_K", PLAIN)


@pytest.mark.parametrize("name", MODELS)
def test_other_architectures(llama, tmp_path, name):
    source = write_model(tmp_path / "m", name)
    experts = open_checkpoint(source).config.mixture
    agree(llama, source, tmp_path / "out", "Q8_0", PLAIN, 0.8 if experts else 1.0)


OURS = (
    *("attn_k_b.weight", "attn_v_b.weight"),
    *("ssm_alpha.weight", "ssm_beta.weight", "ssm_ba.weight"),
    *("ffn_latent_down.weight", "ffn_latent_up.weight"),
)
"""Ends of the names of what we store as it is, and llama.cpp quantizes."""
TOGETHER = "attn_gate.weight"
"""What is one layer with ``attn_qkv`` in Qwen 3 Next, and so of its type with us."""


@pytest.mark.parametrize(
    "name",
    [
        *("mixtral", "qwen2_moe", "gpt_oss", "llama4_text", "llama4_text-interleaved"),
        *("deepseek_v3", "glm4_moe", "gpt2", "gpt_neox", "ministral3", "qwen3_vl_text"),
        *("afmoe", "ernie4_5_moe", "falcon", "falcon-two-norms"),
        *("gemma4_text", "gemma4_text-experts", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
        *("granitemoehybrid", "granitemoehybrid-experts", "granitemoeshared", "hunyuan_v1_moe"),
        *("lfm2", "lfm2_moe"),
        *("nemotron_h", "nemotron_h-latent"),
    ],
)
def test_mixes_of_other_architectures(llama, tmp_path, name):
    """Type for type, a tensor of all experts, against llama.cpp's own quantizer."""
    source, target = tmp_path / "source", tmp_path / "target.gguf"
    quantize(write_model(tmp_path / "m", name), source, settings=PLAIN, formats=["gguf:Q8_0"])
    for mix in ("Q2_K", "Q3_K_L", "Q4_K_M", "Q5_0"):
        output = tmp_path / mix
        quantize(tmp_path / "m", output, settings=PLAIN, formats=[f"gguf:{mix}"])
        (ours,) = output.iterdir()
        entries = GGUFFile(ours).tensors
        sizes = {name: e.shape[-1] * math.prod(e.shape[:-2]) for name, e in entries.items()}
        importance = {name: np.ones(size) for name, size in sizes.items()}
        other = (*OURS, TOGETHER) if name == "qwen3_next" else OURS
        compared = [tensor for tensor in entries if not tensor.endswith(other)]
        llama.quantize(next(source.iterdir()), target, file_type(mix), importance)
        theirs = {name: entry.kind.name for name, entry in GGUFFile(target).tensors.items()}
        ours_by_name = {name: entries[name].kind.name for name in compared}
        assert ours_by_name == {name: theirs[name] for name in compared}


@pytest.mark.parametrize("scaling", [LLAMA3, YARN, {"rope_type": "linear", "factor": 4.0}])
def test_rotary_scaling(llama, tmp_path, scaling):
    source = write_tiny_checkpoint(tmp_path / "m", rope_scaling=scaling, **WHOLE)
    agree(llama, source, tmp_path / "out", "Q6_K", PLAIN)


def test_a_gguf_source(llama, tmp_path):
    write_gguf(tmp_path / "source.gguf", tiny_config(**WHOLE), extra=tokenizer_metadata())
    agree(llama, tmp_path / "source.gguf", tmp_path / "out", "Q4_K_M", PLAIN)


SHAPES = [(16, 8, 2, 256, True), (9, 8, 1, 256, False), (17, 4, 2, 288, True), (2, 4, 4, 96, False)]
"""Blocks, heads, key-value heads, hidden size, tied."""


@pytest.mark.parametrize(("depth", "heads", "kv", "hidden", "tied"), SHAPES)
def test_mixes_are_those_of_llama_cpp(llama, tmp_path, depth, heads, kv, hidden, tied):
    """Type for type, against its own quantizer with an importance matrix."""
    config = tiny_config(
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        hidden_size=hidden,
        head_dim=32,
        intermediate_size=256,
        tie_word_embeddings=tied,
    )
    source, target = tmp_path / "source.gguf", tmp_path / "target.gguf"
    write_gguf(source, config, extra=tokenizer_metadata())
    entries = GGUFFile(source).tensors
    importance = {name: np.ones(e.shape[-1]) for name, e in entries.items() if len(e.shape) == 2}
    layers = Layers(depth, heads // kv, tied)
    for mix in MIXES:
        if mix == "MXFP4":  # its own has this type for experts alone
            continue
        llama.quantize(source, target, file_type(mix), importance)
        theirs = {name: entry.kind.name for name, entry in GGUFFile(target).tensors.items()}
        for name in importance:
            assert tensor_type_of(mix, name, entries[name].shape[1], layers) == theirs[name], name
        assert gguf.LlamaFileType(file_type(mix)).name == f"MOSTLY_{mix}"
