"""Reading Hugging Face directories, whole and damaged."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from models.tiny import TEXT, tiny_config, tiny_tensors, tiny_tokenizer, write_tiny_checkpoint
from safetensors.numpy import load_file, save_file

from numbacalib.models import Decoder, open_checkpoint


@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_config_and_tokenizer_come_back(tmp_path: Path, shards: int) -> None:
    checkpoint = open_checkpoint(str(write_tiny_checkpoint(tmp_path, "qwen2", shards=shards)))
    expected = tiny_tensors(tiny_config("qwen2"))
    assert checkpoint.path == tmp_path
    assert set(checkpoint.names()) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), tensor)
        assert checkpoint.info(name) == (tensor.shape, tensor.dtype)
        assert not checkpoint.tensor(name).flags.writeable
    assert checkpoint.hf_config() == json.loads((tmp_path / "config.json").read_text())
    assert checkpoint.config.num_layers == 2
    assert checkpoint.tokenizer.encode(TEXT).ids == tiny_tokenizer().encode(TEXT).ids
    files = checkpoint.tokenizer_files()
    assert set(files) == {"tokenizer.json", "tokenizer_config.json"}
    assert files["tokenizer.json"] == (tmp_path / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("rows", [1, 7, 320, 1000])
def test_tiles_are_the_rows_of_a_tensor(tmp_path: Path, rows: int) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path, dtype="bfloat16"))
    tensor = checkpoint.tensor("lm_head.weight")
    tiles = list(checkpoint.tiles("lm_head.weight", rows))
    assert {len(tile) for tile in tiles[:-1]} <= {rows}
    np.testing.assert_array_equal(np.concatenate(tiles), tensor, strict=True)


def test_a_vocabulary_of_several_tiles(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path, vocab_size=20_000))
    decoder = Decoder(checkpoint)
    tokens = np.array([[0, 8191, 8192, 16383, 16384, 19_999, 5, 8192]])
    hidden = decoder.embed(tokens)
    table = checkpoint.tensor("model.embed_tokens.weight")
    np.testing.assert_array_equal(hidden, table[tokens], strict=True)
    logits = decoder.logits(hidden)[0, :-1].astype(np.float64)
    expected = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(7), tokens[0, 1:]]
    np.testing.assert_allclose(decoder.token_losses(hidden, tokens)[0], expected, rtol=1e-5)


def test_hf_config_is_a_copy(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path))
    checkpoint.hf_config()["architectures"].append("other")
    assert checkpoint.hf_config()["architectures"] == ["LlamaForCausalLM"]


def test_what_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or directory"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"config.json: expected a file, found none"):
        open_checkpoint(tmp_path)
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ValueError, match=r"expected a directory with config.json, or a .gguf file"):
        open_checkpoint(tmp_path / "weights.bin")
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    with pytest.raises(ValueError, match=r"expected model.safetensors or .*index.json, found none"):
        open_checkpoint(tmp_path)


def test_a_missing_tokenizer_is_an_error_only_when_asked_for(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path, tokenizer=False))
    assert checkpoint.tokenizer_files() == {}
    with pytest.raises(ValueError, match=r"expected a tokenizer.json, found none"):
        checkpoint.tokenizer  # noqa: B018
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json: not a tokenizer"):
        checkpoint.tokenizer  # noqa: B018


def test_an_unknown_tensor_says_so(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path))
    for read in (checkpoint.tensor, checkpoint.info):
        with pytest.raises(ValueError, match=r"there is no tensor 'model.nothing' in it"):
            read("model.nothing")


def test_an_unknown_architecture_is_an_error_on_opening(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(model_type="bloom")))
    with pytest.raises(
        ValueError, match=f"{tmp_path}/config.json: model_type: expected one of .*got 'bloom'"
    ):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_config_says_so(tmp_path: Path, content: str) -> None:
    write_tiny_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config.json: (not JSON|expected a JSON object)"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file_says_so(tmp_path: Path, kept: int) -> None:
    file = write_tiny_checkpoint(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model.safetensors: truncated"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "F32 .2. does not take"),
        (
            {"x": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}},
            "x.data_offsets: expected",
        ),
        ({"x": {"dtype": "F4", "shape": [1], "data_offsets": [0, 4]}}, "F4 .1. does not take"),
        (
            {"x": {"dtype": "F5", "shape": [1], "data_offsets": [0, 4]}},
            "x.dtype: expected one of F64",
        ),
        ({"x": {"dtype": "F32"}}, "x.shape: expected a list of integers, .* found none"),
        ({"x": {"dtype": "F32", "shape": [True]}}, "x.shape: expected a list of integers"),
        ({"x": {"dtype": "F32", "shape": [-1, -1]}}, "x.shape: expected a list of integers"),
        ({"x": {"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]}}, "at most 64 axes"),
        ({"x": {"dtype": "F32", "shape": [0, 1 << 99], "data_offsets": [0, 0]}}, "2..48 values"),
        ({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, "a list of 2 integers"),
        ({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "q": 1}}, "x.q: expected no"),
        ({"x": 1}, "x: expected an object, got 1"),
        ({"x" * 1025: 1}, "printable names of at most 1024 characters"),
        ({"a\nb": 1}, "printable names"),
        ({"a\ud800": 1}, "printable names"),
        ([1], "expected a JSON object, got list"),
        ("x", "expected a JSON object, got str"),
    ],
)
def test_a_damaged_header_says_so(tmp_path: Path, header: object, message: str) -> None:
    file = write_tiny_checkpoint(tmp_path) / "model.safetensors"
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(ValueError, match=rf"model.safetensors: damaged header[:,] .*{message}"):
        open_checkpoint(tmp_path)


def test_a_missing_shard_says_so(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, shards=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="names files that are missing: model-00002-of-00002"):
        open_checkpoint(tmp_path)


def test_the_decoder_checks_every_tensor_before_it_reads(tmp_path: Path) -> None:
    file = write_tiny_checkpoint(tmp_path) / "model.safetensors"
    whole = load_file(file)

    def decoder_of(**changes: object) -> Decoder:
        tensors = {n: t for n, t in (whole | changes).items() if t is not None}
        save_file(tensors, file)
        return Decoder(open_checkpoint(tmp_path))

    norm = "model.norm.weight"
    with pytest.raises(ValueError, match=f"1 tensors are missing, first {norm}"):
        decoder_of(**{norm: None})
    with pytest.raises(ValueError, match=rf"{norm}: expected shape \(64,\), got \(3,\)"):
        decoder_of(**{norm: np.ones(3, np.float32)})
    with pytest.raises(ValueError, match=f"{norm}: expected float16, .*got int8"):
        decoder_of(**{norm: np.ones(64, np.int8)})
