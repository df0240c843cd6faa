"""Reading GGUF files that the ``gguf`` package writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from models import naive_llama
from models.tiny import assert_close, random_tokens, tiny_config
from models.tiny_gguf import tokenizer_metadata, write_gguf

from numbacalib.models import Decoder, ModelConfig, open_checkpoint
from numbacalib.models.rope import inverse_frequencies

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")


@pytest.mark.parametrize("tensor_type", TYPES)
def test_every_tensor_type_comes_back(tmp_path: Path, tensor_type: str) -> None:
    expected = write_gguf(tmp_path / "tiny.gguf", tiny_config(), tensor_type)
    checkpoint = open_checkpoint(tmp_path / "tiny.gguf")
    assert set(checkpoint.names()) == set(expected)
    for name, tensor in expected.items():
        actual = checkpoint.tensor(name)
        assert checkpoint.info(name) == (actual.shape, actual.dtype)
        np.testing.assert_array_equal(actual.astype(np.float32), tensor, err_msg=name)
    dtype = {"F16": "float16", "BF16": "bfloat16"}.get(tensor_type, "float32")
    assert str(checkpoint.tensor("lm_head.weight").dtype) == dtype
    assert checkpoint.hf_config()["torch_dtype"] == dtype


@pytest.mark.parametrize(
    "overrides",
    [
        {"model_type": "llama"},
        {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
        {"model_type": "llama", "tie_word_embeddings": True},
        {"model_type": "qwen2"},
        {"model_type": "qwen3", "head_dim": 24},
    ],
    ids=str,
)
def test_each_architecture_runs(tmp_path: Path, overrides: dict[str, Any]) -> None:
    config = tiny_config(**overrides)
    tensors = write_gguf(tmp_path / "tiny.gguf", config)
    checkpoint = open_checkpoint(tmp_path / "tiny.gguf")
    assert checkpoint.config == ModelConfig.from_hf(config)
    decoder, tokens = Decoder(checkpoint), random_tokens(13)
    logits = decoder.logits(decoder.forward(tokens))
    assert_close(logits, naive_llama.forward(config, tensors, tokens))


def test_a_window_makes_it_a_mistral(tmp_path: Path) -> None:
    config = tiny_config()
    extra = {"llama.attention.sliding_window": 5}
    tensors = write_gguf(tmp_path / "tiny.gguf", config, extra=extra)
    checkpoint = open_checkpoint(tmp_path / "tiny.gguf")
    assert checkpoint.hf_config()["architectures"] == ["MistralForCausalLM"]
    decoder, tokens = Decoder(checkpoint), random_tokens(13)
    expected = naive_llama.forward(config | {"sliding_window": 5}, tensors, tokens)
    assert_close(decoder.logits(decoder.forward(tokens)), expected)


def test_rope_scaling_is_read(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    write_gguf(file, tiny_config(), extra=scaling)
    assert open_checkpoint(file).config.rope_scaling == {"rope_type": "linear", "factor": 4.0}
    scaling = scaling | {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.original_context_length": 32,
    }
    write_gguf(file, tiny_config(), extra=scaling)
    expected = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    assert open_checkpoint(file).config.rope_scaling == expected
    write_gguf(file, tiny_config(), extra={"llama.rope.scaling.type": "longrope"})
    with pytest.raises(ValueError, match="expected none, linear or yarn, got 'longrope'"):
        open_checkpoint(file)


def test_frequency_divisors_are_recognised_as_llama3(tmp_path: Path) -> None:
    file, config = tmp_path / "tiny.gguf", tiny_config(rope_theta=500000.0)
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain, _ = inverse_frequencies(ModelConfig.from_hf(config), 1)
    scaled, _ = inverse_frequencies(ModelConfig.from_hf(config | {"rope_scaling": scaling}), 1)
    divisors = (plain / scaled).astype(np.float32)
    write_gguf(file, config, tensors={"rope_freqs.weight": divisors})
    assert open_checkpoint(file).config.rope_scaling == scaling
    assert "rope_freqs.weight" not in open_checkpoint(file).names()
    divisors[1] = 3
    write_gguf(file, config, tensors={"rope_freqs.weight": divisors})
    with pytest.raises(ValueError, match="not the divisors of Llama 3's rotary scaling"):
        open_checkpoint(file)


def test_what_is_not_supported_says_so(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tiny_config(), "Q5_0")
    with pytest.raises(ValueError, match=r"token_embd.weight: .*Q4_1.*got GGML type 6"):
        open_checkpoint(file)
    write_gguf(file, tiny_config(), extra={"llama.expert_count": 8})
    with pytest.raises(ValueError, match="mixtures of experts are not supported"):
        open_checkpoint(file)
    write_gguf(file, tiny_config(), extra={"llama.rope.dimension_count": 8})
    with pytest.raises(ValueError, match=r"rope.dimension_count: expected the whole head, 16"):
        open_checkpoint(file)
    write_gguf(file, tiny_config(), tensors={"blk.0.odd.weight": np.ones(2, np.float32)})
    with pytest.raises(ValueError, match=r"no architecture that is supported: blk.0.odd.weight"):
        open_checkpoint(file)
    writer = gguf.GGUFWriter(file, "gemma")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"general.architecture: .*got 'gemma'"):
        open_checkpoint(file)


def test_a_truncated_file_says_so(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tiny_config(), "Q8_0", extra=tokenizer_metadata())
    whole = file.read_bytes()
    for kept in (5, 30, 100, 2000, len(whole) // 2, len(whole) - 200):
        file.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=r"tiny.gguf: truncated"):
            open_checkpoint(file)
    for content in (b"", b"other" + whole[5:]):
        file.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"tiny.gguf: (not a GGUF file|cannot mmap an empty file)"
        ):
            open_checkpoint(file)
