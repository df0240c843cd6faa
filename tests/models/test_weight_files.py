"""Which files a directory's weights are read from, and which tensors of them count."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from models.tiny import tiny_config, tiny_tensors, write_tiny_checkpoint
from safetensors.numpy import load_file, save_file

from numbacalib.models import Checkpoint, Decoder, open_checkpoint
from numbacalib.quantizer import Settings, quantize

EMBEDDINGS, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
QUERY = "model.layers.0.self_attn.q_proj"


def rewrite(directory: Path, **changes: Any) -> None:
    """Change tensors of ``model.safetensors``; None removes one."""
    file = directory / "model.safetensors"
    tensors = load_file(file) | changes
    save_file({name: t for name, t in tensors.items() if t is not None}, file)


def edit_index(directory: Path, edit: Any) -> None:
    file = directory / "model.safetensors.index.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def assert_weights(checkpoint: Checkpoint, seed: int = 0) -> None:
    expected = tiny_tensors(tiny_config(), seed)
    assert set(checkpoint.names()) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), tensor)


@pytest.mark.parametrize("shards", [1, 2])
def test_stray_files_do_not_count(tmp_path: Path, shards: int) -> None:
    write_tiny_checkpoint(tmp_path, shards=shards)
    other = tiny_tensors(tiny_config(), seed=9)
    for name in ("model_old", "training_state", "adapter_model", "consolidated", "zzz"):
        save_file(other, tmp_path / f"{name}.safetensors")
    assert_weights(open_checkpoint(tmp_path))


def test_one_file_goes_before_an_index_beside_it(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, shards=2, seed=9)
    write_tiny_checkpoint(tmp_path)
    assert_weights(open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", "PyTorch's pickles"),
        ("pytorch_model.bin.index.json", "PyTorch's pickles"),
        ("adapter_model.safetensors", "an adapter: merge it"),
        ("consolidated.00.pth", "Mistral's or Meta's own layout"),
        ("consolidated.safetensors", "Mistral's or Meta's own layout"),
        ("weights.00.npz", "MLX's arrays"),
        ("model-q4.gguf", "a GGUF file: give its own path"),
        ("model.fp16.safetensors", "safetensors files of names that transformers does not read"),
    ],
)
def test_weights_in_another_form_are_named(tmp_path: Path, name: str, message: str) -> None:
    write_tiny_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}: expected model.* found {name} \({message}"
    ):
        open_checkpoint(tmp_path)


def test_an_adapter_in_the_directory_is_refused(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(
        ValueError, match="adapter_config.json: expected a model without an adapter"
    ):
        open_checkpoint(tmp_path)


def test_a_name_in_two_shards_is_an_error(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, shards=2)
    file = tmp_path / "model-00002-of-00002.safetensors"
    save_file(load_file(file) | {EMBEDDINGS: np.zeros((320, 64), np.float32)}, file)
    with pytest.raises(
        ValueError, match=f"{file.name}: expected {EMBEDDINGS} once, it is in model-00001"
    ):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name", ["../x/model.safetensors", "/etc/x.safetensors", "a\0.safetensors"]
)
@pytest.mark.parametrize("place", ["C:\\x.safetensors", "..\\x.safetensors", "model.bin", "", None])
def test_an_index_names_files_of_its_directory_only(
    tmp_path: Path, name: str, place: str | None
) -> None:
    directory = write_tiny_checkpoint(tmp_path / "x", shards=2)
    for wrong in (name, place):
        edit_index(directory, lambda index, wrong=wrong: index["weight_map"].update({NORM: wrong}))
        with pytest.raises(ValueError, match=r"index.json: weight_map.*: expected"):
            open_checkpoint(directory)


def test_links_of_a_cache_are_followed(tmp_path: Path) -> None:
    blobs = write_tiny_checkpoint(tmp_path / "blobs", shards=2)
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(blobs.iterdir())):
        blob = file.rename(blobs / f"{number:064x}")
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    checkpoint = open_checkpoint(snapshot)
    assert_weights(checkpoint)
    assert "tokenizer.json" in checkpoint.tokenizer_files()
    for blob in blobs.iterdir():
        blob.unlink()
    with pytest.raises(ValueError, match="expected a file, found a link to a file that is gone"):
        open_checkpoint(snapshot)


def test_index_and_shards_agree(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, shards=2)
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    edit_index(tmp_path, lambda index: index["weight_map"].update({EMBEDDINGS: second}))
    with pytest.raises(ValueError, match=f"index.json: expected '{EMBEDDINGS}' in {second}, which"):
        open_checkpoint(tmp_path)
    edit_index(tmp_path, lambda index: index["weight_map"].update({EMBEDDINGS: first, "x": first}))
    with pytest.raises(ValueError, match=f"index.json: expected 'x' in {first}, which does not"):
        open_checkpoint(tmp_path)
    for content in ({}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"x": 1}}):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"index.json: weight_map.*: expected"):
            open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "NOTICE"])
def test_a_pipe_in_the_place_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    write_tiny_checkpoint(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}: expected a regular file"):
        open_checkpoint(tmp_path)


def test_a_device_is_refused(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="model.safetensors: expected a regular file"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.gguf").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="model.gguf: expected a regular file"):
        open_checkpoint(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        (f"{QUERY}.bias", {}),
        ("model.layers.0.mlp.up_proj.bias", {"attention_bias": True}),
        ("model.layers.2.input_layernorm.weight", {}),
        ("model.layers.00.input_layernorm.weight", {}),
        ("model.layers.0.mlp.experts.0.up_proj.weight", {}),
        ("model.layers.0.self_attn.q_norm.weight", {}),
        ("model.layers.0.self_attn.k_scale", {}),
        (f"{QUERY}.weight_packed", {}),
        ("model.norm.bias", {}),
        ("lm_head.bias", {}),
        (f"model.layers.{'9' * 5000}.input_layernorm.weight"[:1000], {}),
    ],
)
def test_what_the_configuration_denies_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, overrides: dict[str, Any]
) -> None:
    """As transformers does, whose warning is among many."""
    write_tiny_checkpoint(tmp_path, **overrides)
    expected = open_checkpoint(tmp_path).names()
    assert not caplog.records
    rewrite(tmp_path, **{name: np.zeros(4, np.float32)})
    assert set(open_checkpoint(tmp_path).names()) == set(expected)
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}: 1 tensors have no place in a llama of 2 layers")
    assert name[:200] in message


def test_layers_that_predict_further_tokens_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tiny_checkpoint(tmp_path, num_nextn_predict_layers=1)
    further = "model.layers.2.eh_proj.weight"
    rewrite(tmp_path, **{further: np.ones((4, 4), np.float32)})
    assert further in open_checkpoint(tmp_path).names()
    assert not caplog.records
    output = tmp_path / "out"
    quantize(tmp_path, output, settings=Settings(method="rtn", group_size=32))
    np.testing.assert_array_equal(open_checkpoint(output).tensor(further), 1)
    config = json.loads((output / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == ["lm_head", r"re:.*layers\.2\..*"]


def test_tables_of_older_versions_are_left_out(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    names = ("layers.0.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq", "x.masked_bias")
    rewrite(tmp_path, **{f"model.{name}": np.zeros(8, np.float32) for name in names})
    assert_weights(open_checkpoint(tmp_path))


def test_names_of_a_base_model_get_their_prefix(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({n.removeprefix("model."): t for n, t in load_file(file).items()}, file)
    assert_weights(open_checkpoint(tmp_path))
    rewrite(tmp_path, **{NORM: np.ones(64, np.float32)})
    with pytest.raises(ValueError, match=f"model.safetensors: expected {NORM} once"):
        open_checkpoint(tmp_path)


def test_a_tied_head_of_its_own_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And the configuration says so from then on, so that no runtime takes the embeddings."""
    write_tiny_checkpoint(tmp_path, tie_word_embeddings=True)
    table = load_file(tmp_path / "model.safetensors")[EMBEDDINGS]
    rewrite(tmp_path, **{HEAD: table.copy()})
    checkpoint = open_checkpoint(tmp_path)
    assert HEAD not in checkpoint.names()
    assert not caplog.records
    for head in (table + 1, table.astype(np.float16)):
        rewrite(tmp_path, **{HEAD: head})
        checkpoint = open_checkpoint(tmp_path)
        np.testing.assert_array_equal(checkpoint.tensor(HEAD), head)
        assert not checkpoint.config.tie_word_embeddings
        assert checkpoint.hf_config()["tie_word_embeddings"] is False
    assert len(caplog.records) == 2
    assert f"ties {HEAD} to the embeddings" in caplog.text
    rewrite(tmp_path, **{HEAD: table[:8]})
    with pytest.raises(ValueError, match=f"{HEAD}: expected shape"):
        Decoder(open_checkpoint(tmp_path))


def test_weights_packed_by_mlx_are_named(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    packed = {f"{QUERY}.{part}": np.zeros((64, 1), np.float16) for part in ("scales", "biases")}
    rewrite(tmp_path, **{f"{QUERY}.weight": np.zeros((64, 8), np.uint32)}, **packed)
    with pytest.raises(
        ValueError, match=f"{QUERY}.weight: expected the quantization of weights that MLX"
    ):
        open_checkpoint(tmp_path)


def test_a_billion_layers_end_at_once(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    config = tiny_config(num_hidden_layers=10**9)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="config.json: num_hidden_layers: expected .* to 10000"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10_000}))
    with pytest.raises(ValueError, match="89982 tensors are missing"):
        Decoder(open_checkpoint(tmp_path))


WIDTHS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8}
WIDTHS |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
WIDTHS |= {"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32}
WIDTHS |= {"F64": 64, "I64": 64, "U64": 64, "C64": 64}


def test_tensors_of_every_type_are_given_as_stored(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    file = tmp_path / "model.safetensors"
    old = file.read_bytes()
    start = 8 + int.from_bytes(old[:8], "little")
    header, data = json.loads(old[8:start]), old[start:]
    rng = np.random.default_rng(0)
    expected = {}
    for name, width in WIDTHS.items():
        content = rng.bytes(8 * width // 8 * 3)
        span = [len(data), len(data) + len(content)]
        header[f"extra.{name}"] = {"dtype": name, "shape": [3, 8], "data_offsets": span}
        expected[name], data = content, data + content
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    checkpoint = open_checkpoint(tmp_path)
    for name, content in expected.items():
        stored = checkpoint.stored(f"extra.{name}")
        assert (stored.dtype_name, stored.shape) == (name, (3, 8))
        assert stored.data.tobytes() == content
    assert checkpoint.info("extra.F8_E8M0").dtype == ml_dtypes.float8_e8m0fnu
    for read in (checkpoint.tensor, checkpoint.info):
        with pytest.raises(ValueError, match="extra.F4: expected elements of whole bytes, got F4"):
            read("extra.F4")


def test_what_is_copied_beside_the_weights(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    (tmp_path / "additional_chat_templates").mkdir()
    copied = {
        "tekken.json",
        "chat_template.jinja",
        "chat_template.json",
        "additional_chat_templates/tool_use.jinja",
        "LICENSE",
        "License.txt",
        "NOTICE.md",
        "USE_POLICY.md",
    }
    for name in copied | {"README.md", "model.safetensors.bak", "pytorch_model.bin"}:
        (tmp_path / name).write_text(name)
    (tmp_path / "LICENSES").mkdir()
    files = open_checkpoint(tmp_path).tokenizer_files()
    assert set(files) == copied | {"tokenizer.json", "tokenizer_config.json"}
    assert all(files[name] == name.encode() for name in copied)
