"""GGUF files of other architectures than llama's: the same configuration and losses as the original's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models.converted_cases import CASES as PLAIN_CASES
from models.converted_cases import SIZES
from models.converted_gguf import Case, base_of, write
from models.converted_hybrids import HYBRIDS
from models.described import described_tensors
from models.tiny import random_tokens

from numbacalib.models import Decoder, ModelConfig, open_checkpoint
from numbacalib.models.architectures import ARCHITECTURES
from numbacalib.models.gguf_architectures import GGUF_ARCHITECTURES
from numbacalib.models.gguf_file import GGUFFile
from numbacalib.models.gguf_metadata import Metadata
from numbacalib.models.gguf_names import gguf_name, hf_name
from numbacalib.models.layer_tensors import is_linear
from numbacalib.models.tensor_names import canonical_name
from numbacalib.quantizer import Settings, quantize

CASES = PLAIN_CASES | HYBRIDS


@pytest.mark.parametrize("name", CASES)
def test_files_are_read_as_what_they_were_made_from(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    key = ARCHITECTURES[case.config["model_type"]].key
    config = {key(name): value for name, value in SIZES.items()} | case.config
    write(tmp_path / "model.gguf", name, config, case)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    expected = ModelConfig.from_hf(
        config | {"tie_word_embeddings": checkpoint.config.tie_word_embeddings}
    )
    assert checkpoint.config == expected
    assert ModelConfig.from_hf(checkpoint.hf_config()) == expected
    made = described_tensors(expected)
    tensors = {canonical_name(name, expected): values for name, values in made.items()}
    for tensor in checkpoint.names():
        if expected.architecture.transposed and is_linear(tensor, expected):
            tensors[tensor] = tensors[tensor].T
        offset = expected.architecture.norm_offset
        rounded = 2**-24 if offset and "norm" in tensor else 0  # the 1 of norms
        if tensor.endswith("A_log"):  # an exponential in float32, and its logarithm
            rounded = 2**-22
        np.testing.assert_allclose(
            checkpoint.tensor(tensor), tensors[tensor], rtol=0, atol=rounded, err_msg=tensor
        )
    assert np.isfinite(Decoder(checkpoint).loss(random_tokens(2, 40)))


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    """A whole block more, with tensors that only it has; files made of it have none."""
    case = CASES["glm4moe"]
    key = ARCHITECTURES[case.config["model_type"]].key
    config = {key(name): value for name, value in SIZES.items()} | case.config
    more = {
        "blk.4.attn_q.weight": np.ones((64, 64), np.float32),
        "blk.4.ffn_up_exps.weight": np.ones((3, 32, 64), np.float32),
        "blk.4.nextn.eh_proj.weight": np.ones((64, 128), np.float32),
    }
    counts = {"block_count": 5, "nextn_predict_layers": 1}
    files = tmp_path / "plain.gguf", tmp_path / "more.gguf"
    write(files[0], "glm4moe", config, case)
    write(files[1], "glm4moe", config, Case(case.config, case.keys | counts, more))
    plain, checkpoint = map(open_checkpoint, files)
    assert set(checkpoint.dropped) == set(more)
    assert checkpoint.config == plain.config
    assert set(checkpoint.names()) == set(plain.names())
    tokens = random_tokens(1, 20)
    assert Decoder(checkpoint).loss(tokens) == Decoder(plain).loss(tokens)
    quantize(files[1], tmp_path / "out", settings=Settings(method="rtn"), formats=["gguf:Q8_0"])
    metadata = GGUFFile(next((tmp_path / "out").iterdir())).metadata.under("glm4moe.")
    assert metadata.required("block_count") == 4
    assert metadata.required("nextn_predict_layers") == 0
    counts["nextn_predict_layers"] = 5
    write(tmp_path / "all.gguf", "glm4moe", config, Case(case.config, case.keys | counts, more))
    with pytest.raises(ValueError, match="nextn_predict_layers: expected a number below the 5 b"):
        open_checkpoint(tmp_path / "all.gguf")


def test_numbers_of_blocks_that_are_left_out_are_left_out(tmp_path: Path) -> None:
    """Arrays with one number per block include the blocks that predict further tokens."""
    case, path = CASES["nemotron_h_moe"], tmp_path / "model.gguf"
    key = ARCHITECTURES[case.config["model_type"]].key
    config = {key(name): value for name, value in SIZES.items()} | case.config
    more = {
        "block_count": 5,
        "nextn_predict_layers": 1,
        "attention.head_count_kv": [0, 0, 2, 0, 2],
        "feed_forward_length": [0, 32, 0, 32, 32],
    }
    tensors = {"blk.4.nextn.eh_proj.weight": np.ones((64, 128), np.float32)}
    write(path, "nemotron_h_moe", config, Case(case.config, case.keys | more, tensors))
    checkpoint = open_checkpoint(path)
    assert checkpoint.config.halves == ("attention", "mlp", "attention", "mlp")
    assert set(checkpoint.dropped) == set(tensors)
    quantize(path, tmp_path / "out", settings=Settings(method="rtn"), formats=["gguf:Q8_0"])
    again = open_checkpoint(next((tmp_path / "out").iterdir()))
    assert again.config == checkpoint.config
    options = GGUFFile(again.path).metadata.under("nemotron_h_moe.")
    assert options.integers("attention.head_count_kv").tolist() == [0, 0, 2, 0]
    assert options.integers("feed_forward_length").tolist() == [0, 32, 0, 32]


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        (
            "falcon",
            {"attention.key_length": 8, "attention.value_length": 8},
            "attention.key_length: expected 16, a head's share",
        ),
        ("granitehybrid", {"ssm.inner_size": 64}, "ssm.inner_size: expected twice embedding_leng"),
        ("granitehybrid", {"ssm.time_step_rank": 0}, "ssm.time_step_rank: expected a divisor of"),
        ("lfm2", {"shortconv.l_cache": 1}, "shortconv.l_cache: expected at least 2 positions, g"),
        ("lfm2", {"attention.head_count_kv": [0, 2]}, "head_count_kv: expected a non-negative n"),
        ("lfm2", {"attention.head_count_kv": [0, 2, 0, 4]}, "head_count_kv: expected the same num"),
        ("lfm2moe", {"expert_gating_func": 1}, "expert_gating_func: expected 2, sigmoids, got 1"),
        ("nemotron_h", {"feed_forward_length": [0, 96, 96, 0]}, "feed_forward_length: expected 0"),
    ],
)
def test_options_that_do_not_fit_are_named(tmp_path: Path, name: str, keys, message: str) -> None:
    case, path = CASES[name], tmp_path / "model.gguf"
    key = ARCHITECTURES[case.config["model_type"]].key
    config = {key(size): value for size, value in SIZES.items()} | case.config
    write(path, name, config, Case(case.config, case.keys | keys))
    with pytest.raises(ValueError, match=message) as error:
        open_checkpoint(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "tensors", "message"),
    [
        (
            "qwen3next",
            {"blk.0.attn_gate": None},
            "attn_gate.weight: expected it beside blk.0.attn_q",
        ),
        ("qwen3next", {"blk.0.attn_gate": (30, 64)}, "2 tensors|expected shape"),
        ("qwen35", {"blk.0.ssm_a": (4,)}, "ssm_a: expected numbers below 0, factors of decays"),
        ("nemotron_h", {"blk.0.ssm_a": (4, 1)}, "ssm_a: expected numbers below 0, factors of d"),
        ("granitehybrid", {"blk.0.ssm_conv1d.bias": None}, "conv1d.bias|missing|expected"),
        (
            "gemma4",
            {"rope_freqs.weight": (16,)},
            "rope_freqs.weight: expected 16 divisors, one num",
        ),
    ],
)
def test_damaged_tensors_are_named(tmp_path: Path, name: str, tensors, message: str) -> None:
    case, path = CASES[name], tmp_path / "model.gguf"
    key = ARCHITECTURES[case.config["model_type"]].key
    config = {key(size): value for size, value in SIZES.items()} | case.config
    write(path, name, config, case, tensors)
    with pytest.raises(ValueError, match=message) as error:
        Decoder(open_checkpoint(path)).loss(random_tokens(1, 8))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [-3, [1, -3], [1]])
def test_numbers_by_layer_are_checked(value: int | list[int]) -> None:
    given = np.array(value, np.int32) if isinstance(value, list) else value
    with pytest.raises(
        ValueError, match="key: expected a non-negative number for each of 2 blocks"
    ):
        Metadata({"key": given}).by_layer("key", 2, least=0)


def test_every_architecture_of_files_is_tried() -> None:
    assert {base_of(name) for name in CASES} | {"qwen2", "qwen3"} == set(GGUF_ARCHITECTURES)


@pytest.mark.parametrize("name", GGUF_ARCHITECTURES)
def test_names_are_inverse(name: str) -> None:
    model_type = GGUF_ARCHITECTURES[name].model_type
    for theirs in ("blk.3.attn_output.weight", "token_embd.weight", "blk.0.ffn_down.bias"):
        assert gguf_name(hf_name(theirs, model_type), model_type) == theirs
    with pytest.raises(ValueError, match=r"of a supported architecture, got blk\.0\.attn_x"):
        hf_name("blk.0.attn_x.weight", model_type)
