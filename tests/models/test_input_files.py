"""Files that change, are cut or hold hostile JSON while a model is read from them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from models.tiny import tiny_config, write_tiny_checkpoint
from models.tiny_gguf import write_gguf

from numbacalib.models import open_checkpoint

EMBEDDINGS = "model.embed_tokens.weight"


def test_untouched_files_are_unchanged(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path, shards=2))
    (tmp_path / "unrelated").touch()
    checkpoint.check_unchanged()


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors.index.json",
        "model-00002-of-00002.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ],
)
def test_a_change_of_any_file_is_noticed(tmp_path: Path, name: str) -> None:
    file = write_tiny_checkpoint(tmp_path, shards=2) / name
    content, time = file.read_bytes(), file.stat().st_mtime_ns
    checkpoint = open_checkpoint(tmp_path)
    file.write_bytes(content + b" ")
    os.utime(file, ns=(time, time))
    with pytest.raises(ValueError, match=f"{name}: the file has changed .* bytes then"):
        checkpoint.check_unchanged()
    file.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"{name}: the file has changed .* bytes then"):
        checkpoint.check_unchanged()
    file.write_bytes(content)
    os.utime(file, ns=(time + 10**9, time + 10**9))
    with pytest.raises(ValueError, match=f"{name}: the file has changed .*in time"):
        checkpoint.check_unchanged()
    os.utime(file, ns=(time, time))
    checkpoint.check_unchanged()
    file.unlink()
    with pytest.raises(ValueError, match=f"{name}: expected a file, found none"):
        checkpoint.check_unchanged()


def test_a_gguf_file_is_watched_too(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file, tiny_config())
    checkpoint = open_checkpoint(file)
    checkpoint.check_unchanged()
    os.utime(file, ns=(1, 1))
    with pytest.raises(ValueError, match="model.gguf: the file has changed"):
        checkpoint.check_unchanged()


def test_a_shard_that_is_cut_is_an_error_and_no_crash(tmp_path: Path) -> None:
    """A file that is mapped into memory would end the process with SIGBUS here."""
    file = write_tiny_checkpoint(tmp_path) / "model.safetensors"
    checkpoint = open_checkpoint(tmp_path)
    tensor = checkpoint.tensor(EMBEDDINGS)
    before = tensor.copy()
    os.truncate(file, 4096)
    for read in (checkpoint.tensor, checkpoint.stored):
        with pytest.raises(ValueError, match="model.safetensors: the file has changed"):
            read(EMBEDDINGS)
    np.testing.assert_array_equal(tensor, before)  # what was read before stays


def test_a_file_that_is_replaced_is_not_read(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path / "a"))
    other = write_tiny_checkpoint(tmp_path / "b", seed=1) / "model.safetensors"
    os.utime(other, ns=(1, 1))
    other.replace(tmp_path / "a" / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors: the file has changed"):
        checkpoint.tensor(EMBEDDINGS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"id2label": ' + b"[" * 40 + b"]" * 40 + b"}", "nested at most 32 deep"),
        (b'{"model_type": "llama", "model_type": "qwen2"}', "the key 'model_type' comes twice"),
        (b'{"a": {"b": 1, "b": 1}}', "the key 'b' comes twice"),
        (b"\xff\xfe", "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not JSON"),
        (b"", "not JSON"),
        (b"null", "expected a JSON object, got NoneType"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_hostile_json_is_one_error(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write_tiny_checkpoint(tmp_path, shards=2)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"^{tmp_path}/{name}: [^\n]*{message}[^\n]*$"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b'{"a":1,"a":1}'])
def test_a_hostile_header_is_one_error(tmp_path: Path, content: bytes) -> None:
    file = write_tiny_checkpoint(tmp_path) / "model.safetensors"
    file.write_bytes(len(content).to_bytes(8, "little") + content)
    with pytest.raises(ValueError, match=r"model.safetensors: damaged header: not JSON"):
        open_checkpoint(tmp_path)


def test_a_huge_header_is_not_read(tmp_path: Path) -> None:
    file = write_tiny_checkpoint(tmp_path) / "model.safetensors"
    with file.open("wb") as sparse:
        sparse.write((10**11).to_bytes(8, "little"))
        sparse.truncate(10**11 + 8)
    with pytest.raises(ValueError, match="damaged header, expected at most 100000000 bytes"):
        open_checkpoint(tmp_path)
    with (tmp_path / "config.json").open("wb") as sparse:
        sparse.truncate(10**11)
    with pytest.raises(ValueError, match="config.json: expected at most 16777216 bytes"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(0, 8), (4, 12)], "'b' was expected at byte 8, .* and is at 4"),
        ([(0, 8), (12, 20)], "'b' was expected at byte 8, .* and is at 12"),
        ([(0, 8), (8, 16)], "truncated, its tensors end at byte"),
        ([(0, 8)], "damaged header, the tensors end at byte"),
    ],
)
def test_spans_follow_each_other(
    tmp_path: Path, spans: list[tuple[int, int]], message: str
) -> None:
    file = write_tiny_checkpoint(tmp_path) / "model.safetensors"
    header = {
        name: {"dtype": "F32", "shape": [2], "data_offsets": span}
        for name, span in zip("ab", spans, strict=False)
    }
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(12))
    with pytest.raises(ValueError, match=f"model.safetensors: .*{message}"):
        open_checkpoint(tmp_path)


def test_an_error_of_the_configuration_names_its_file(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    for wrong in (
        {"rope_scaling": {"rope_type": "mrope"}},
        {"quantization_config": 4},
        {"rms_norm_eps": float("nan")},
    ):
        (tmp_path / "config.json").write_text(json.dumps(tiny_config(**wrong)))
        with pytest.raises(ValueError, match=f"^{tmp_path}/config.json: {next(iter(wrong))}"):
            open_checkpoint(tmp_path)
