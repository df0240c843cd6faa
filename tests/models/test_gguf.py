"""Reading GGUF files that the ``gguf`` package writes."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import gguf_bytes
import numpy as np
import pytest
from models import naive_llama
from models.tiny import assert_close, random_tokens, tiny_config
from models.tiny_gguf import tokenizer_metadata, write_gguf

from numbacalib.models import Decoder, ModelConfig, open_checkpoint
from numbacalib.models.gguf_names import hf_name
from numbacalib.models.rope import inverse_frequencies

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")


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
    assert checkpoint.file_bytes() == (tmp_path / "tiny.gguf").stat().st_size


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


LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"scaling.type": "linear", "scaling.factor": 4.0}, LINEAR),
        # as llama.cpp: linear where there is no type, and an old name of the factor
        ({"scaling.factor": 4.0}, LINEAR),
        ({"scale_linear": 4.0}, LINEAR),
        ({"scaling.factor": 4.0, "scale_linear": 2.0}, LINEAR),
        ({"scaling.type": "none", "scaling.factor": 4.0}, None),
        ({"scaling.type": "linear"}, None),
        ({"scaling.factor": 0.0}, None),
        ({"scaling.factor": 1.0, "scaling.attn_factor": 1.0}, None),
        ({"scaling.type": "yarn", "scaling.factor": 4.0}, YARN),
        (
            {
                "scaling.type": "yarn",
                "scaling.factor": 4.0,
                "scaling.original_context_length": 32,
                "scaling.yarn_beta_fast": 16.0,
                "scaling.yarn_beta_slow": 2.0,
                "scaling.finetuned": True,
            },
            YARN | {"original_max_position_embeddings": 32, "beta_fast": 16.0, "beta_slow": 2.0},
        ),
        (
            {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.attn_factor": 0.5},
            YARN | {"attention_factor": 0.5 * (1 + 0.1 * math.log(4))},
        ),
    ],
)
def test_rope_scaling_is_what_llama_cpp_makes_of_it(
    tmp_path: Path, keys: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tiny_config(), extra={f"llama.rope.{key}": keys[key] for key in keys})
    checkpoint = open_checkpoint(file)
    assert checkpoint.hf_config().get("rope_scaling") == expected
    assert checkpoint.config.rope_scaling == (expected or {"rope_type": "default"})


def test_yarn_turns_as_ggml_does(tmp_path: Path) -> None:
    """The formulas of ``rope_yarn`` in ggml/src/ggml-cpu/ops.cpp, https://github.com/ggml-org/ggml."""
    dim, base, factor, original, fast, slow, attention = 16, 10000.0, 8.0, 32, 4.0, 0.5, 0.75
    keys = {"type": "yarn", "factor": factor, "original_context_length": original}
    keys |= {"yarn_beta_fast": fast, "yarn_beta_slow": slow, "attn_factor": attention}
    extra = {f"llama.rope.scaling.{key}": value for key, value in keys.items()}
    write_gguf(tmp_path / "tiny.gguf", tiny_config(), extra=extra)
    actual, scaling = inverse_frequencies(open_checkpoint(tmp_path / "tiny.gguf").config.rope, 1)

    def corrected(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    start = max(0, math.floor(corrected(fast)))
    end = min(dim - 1, math.ceil(corrected(slow)))
    for pair, frequency in enumerate(actual):
        extrapolated = base ** (-2 * pair / dim)
        ramp = 1 - min(1, max(0, (pair - start) / max(0.001, end - start)))
        mixed = extrapolated / factor * (1 - ramp) + extrapolated * ramp
        assert frequency == pytest.approx(mixed, rel=1e-12)
    assert scaling == pytest.approx(attention * (1 + 0.1 * math.log(factor)), rel=1e-12)


def test_frequency_divisors_are_recognised_as_llama3(tmp_path: Path) -> None:
    file, config = tmp_path / "tiny.gguf", tiny_config(rope_theta=500000.0)
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain, _ = inverse_frequencies(ModelConfig.from_hf(config).rope, 1)
    scaled, _ = inverse_frequencies(ModelConfig.from_hf(config | {"rope_scaling": scaling}).rope, 1)
    divisors = (plain / scaled).astype(np.float32)
    write_gguf(file, config, tensors={"rope_freqs.weight": divisors})
    assert open_checkpoint(file).config.rope_scaling == scaling
    assert "rope_freqs.weight" not in open_checkpoint(file).names()
    divisors[1] = 3
    write_gguf(file, config, tensors={"rope_freqs.weight": divisors})
    with pytest.raises(ValueError, match="not the divisors of Llama 3's rotary scaling"):
        open_checkpoint(file)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            {"general.architecture": "bert"},
            "general.architecture: expected one of afmoe, .*'bert'",
        ),
        ({"general.architecture": 3}, "general.architecture: expected text, got 3"),
        ({"general.type": "adapter"}, "general.type: expected a model, got 'adapter'"),
        ({"llama.expert_count": 8}, "llama.expert_used_count: expected an integer, got none"),
        ({"llama.attn_logit_softcapping": 50.0}, "llama.attn_logit_softcapping: expected 0: .* 50"),
        ({"llama.attention.causal": False}, "llama.attention.causal: expected True: .* got False"),
        ({"llama.logit_scale": 0.5}, "llama.logit_scale: expected 1: other values .* got 0.5"),
        ({"llama.attention.scale": 0.5}, "llama.attention.scale: expected none, an option that is"),
        ({"llama.rope.freq_base_swa": 1.0}, "llama.rope.freq_base_swa: expected none, an option"),
        (
            {"llama.rope.dimension_count": 8},
            "rope.dimension_count: expected the whole head, 2, got 8",
        ),
        ({"llama.attention.value_length": 8}, "value_length: expected the whole head, 2, got 8"),
        ({"llama.rope.scaling.type": "longrope"}, "expected none, linear or yarn, got 'longrope'"),
        ({"llama.rope.scaling.factor": -4.0}, "rope.scaling.factor: expected a positive number"),
        (
            {"llama.rope.scaling.factor": math.nan},
            "scaling.factor: expected a finite number, got nan",
        ),
        ({"llama.rope.scaling.attn_factor": 2.0}, "attn_factor: expected 1 without the type yarn"),
        ({"llama.rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor: expected 1: .* got 0.5"),
        (
            {"llama.rope.scaling.yarn_attn_factor": 1.0},
            "yarn_attn_factor: expected none, an option",
        ),
        (
            {"llama.rope.freq_base": math.inf},
            "llama.rope.freq_base: expected a finite number, got inf",
        ),
        ({"llama.rope.freq_base": "x"}, "llama.rope.freq_base: expected a finite number, got 'x'"),
        ({"llama.block_count": 1.0}, "llama.block_count: expected an integer, got 1.0"),
        (
            {"llama.block_count": 2},
            "llama.block_count: expected the tensors' 1 blocks up to number 0, got 2",
        ),
        (
            {"llama.block_count": 4_000_000_000},
            "llama.block_count: expected the tensors' 1 blocks .* 4000000000",
        ),
        (
            {"llama.embedding_length": [4, 4]},
            "embedding_length: expected an integer, got an array of 2",
        ),
        ({"llama.attention.head_count": True}, "head_count: expected an integer, got True"),
        (
            {"tokenizer.ggml.tokens": ["a"] * 5},
            "tokens: expected at most the 4 of token_embd.weight, got",
        ),
        ({"tokenizer.ggml.bos_token_id": "x"}, "bos_token_id: expected an integer, got 'x'"),
    ],
)
def test_metadata_that_is_not_understood_is_refused_by_name(
    tmp_path: Path, extra: dict[str, Any], message: str
) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(gguf_bytes.model(extra))
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: .*{message}"):
        open_checkpoint(file)


@pytest.mark.parametrize("key", [key for key in gguf_bytes.LLAMA if key != "general.architecture"])
def test_what_a_model_needs_is_missed_by_name(tmp_path: Path, key: str) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(gguf_bytes.model({key: None}))
    with pytest.raises(ValueError, match=rf"tiny.gguf: {key}: expected .*, got none"):
        open_checkpoint(file)


def test_options_that_change_nothing_are_taken(tmp_path: Path) -> None:
    extra = {"expert_count": 0, "attention.causal": True, "rope.scaling.yarn_ext_factor": 1.0}
    extra |= {"vocab_size": 4, "tensor_data_layout": "Meta AI original pth", "logit_scale": 1.0}
    file = tmp_path / "tiny.gguf"
    file.write_bytes(gguf_bytes.model({f"llama.{key}": value for key, value in extra.items()}))
    assert open_checkpoint(file).config.num_layers == 1


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("blk.0.attn_q_norm.weight", (2,)),
        ("blk.0.attn_norm.bias", (4,)),
        ("output_norm.bias", (4,)),
        ("blk.0.ffn_down.bias", (4,)),
        ("blk.0.attn_output.bias", (4,)),
    ],
)
def test_tensors_that_the_model_would_not_use_are_refused(
    tmp_path: Path, name: str, sizes: tuple[int, ...]
) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(gguf_bytes.model(extra={name: sizes}))
    message = rf"tiny.gguf: {hf_name(name)}: expected no such tensor in a llama of 1 layers"
    with pytest.raises(ValueError, match=message):
        open_checkpoint(file)


@pytest.mark.parametrize(
    "name", ["blk.0.odd.weight", "blk.01.attn_q.weight", "blk.1٣.attn_q.weight"]
)
def test_tensors_of_no_known_name_are_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(gguf_bytes.model(extra={name: (4,)}))
    with pytest.raises(
        ValueError, match=rf"tiny.gguf: expected a tensor of .* architecture, got {name}"
    ):
        open_checkpoint(file)


@pytest.mark.parametrize("sizes", [(2,), (1, 1)])
def test_frequency_divisors_of_another_shape_are_refused(
    tmp_path: Path, sizes: tuple[int, ...]
) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(gguf_bytes.model(extra={"rope_freqs.weight": sizes}))
    with pytest.raises(ValueError, match=r"tiny.gguf: rope_freqs.weight: expected 1 positive numb"):
        open_checkpoint(file)


def test_heads_that_do_not_fit_say_so(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    for size in (6, 1 << 30):  # the second would take 4 GiB for the rotary frequencies
        values, extra = {"llama.attention.key_length": size}, {"rope_freqs.weight": (1,)}
        file.write_bytes(gguf_bytes.model(values, extra))
        with pytest.raises(
            ValueError, match=rf"expected heads that make up the 4 rows .* 2 of {size}"
        ):
            open_checkpoint(file)
    file.write_bytes(gguf_bytes.model({"llama.attention.head_count_kv": 1}))
    checkpoint = open_checkpoint(file)
    with pytest.raises(
        ValueError, match=r"k_proj.weight: expected 2 rows of heads of 2, got shape \(4, 4\)"
    ):
        checkpoint.tensor("model.layers.0.self_attn.k_proj.weight")


def test_the_file_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    for name in ("tiny.GGUF", "tiny", "sha256-0123"):
        (tmp_path / name).write_bytes(gguf_bytes.model())
        assert open_checkpoint(tmp_path / name).config.hidden_size == 4
    (tmp_path / "tiny.gguf").write_bytes(b"other" + gguf_bytes.model())
    with pytest.raises(ValueError, match=r"tiny.gguf: expected a directory .* or a .gguf file"):
        open_checkpoint(tmp_path / "tiny.gguf")


def test_a_truncated_file_says_so(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tiny_config(), "Q8_0", extra=tokenizer_metadata())
    whole = file.read_bytes()
    for kept in (5, 30, 100, 2000, len(whole) // 2, len(whole) - 200):
        file.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=r"tiny.gguf: .*truncated"):
            open_checkpoint(file)
