"""Tokenizers rebuilt from GGUF metadata."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from models.tiny import TEXT, tiny_config, tiny_tokenizer
from models.tiny_gguf import metadata_of, tokenizer_metadata, write_gguf
from tokenizers import Tokenizer

from numbacalib.models import open_checkpoint
from numbacalib.models.gguf_pretokenizers import PRETOKENIZERS
from numbacalib.models.gguf_tokenizer import build_tokenizer

TEXTS = (
    TEXT,
    "",
    " ",
    "  two  spaces\n\n\ttab",
    "naïve café 東京 🙂",
    "x=12345;\r\n#!",
    "don't DON'T",
)


def built(metadata: dict[str, Any]) -> Tokenizer:
    present = {key: value for key, value in metadata.items() if value is not None}
    return build_tokenizer(metadata_of(present))


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    assert tokenizer.pre_tokenizer is not None
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def test_a_file_gives_back_the_tokenizer_it_was_made_from(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_config(), extra=tokenizer_metadata())
    checkpoint = open_checkpoint(tmp_path / "tiny.gguf")
    files = checkpoint.tokenizer_files()
    written = Tokenizer.from_str(files["tokenizer.json"].decode())
    for text in (*TEXTS, "a<|endoftext|>b"):
        ids = tiny_tokenizer().encode(text).ids
        assert checkpoint.tokenizer.encode(text).ids == ids
        assert written.encode(text).ids == ids
        assert checkpoint.tokenizer.decode(ids, skip_special_tokens=False) == text
    config = json.loads(files["tokenizer_config.json"])
    assert config["eos_token"] == "<|endoftext|>"
    assert config["model_max_length"] == 128


def test_a_file_without_a_tokenizer_says_so_when_asked(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_config())
    checkpoint = open_checkpoint(tmp_path / "tiny.gguf")
    with pytest.raises(ValueError, match=r"tiny.gguf: tokenizer.ggml.model: .*got none"):
        checkpoint.tokenizer  # noqa: B018


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["Don", "'t", "Ġsay", "ĠDON", "'", "T", "Ġ1234", "ĠĠ", "Ġx", "Ċ", "!"]),
        (
            "default",
            ["Don", "'", "t", "Ġsay", "ĠDON", "'", "T", "Ġ", "123", "4", "ĠĠ", "Ġx", "Ċ", "!"],
        ),
        ("smollm", ["Don", "'t", "Ġsay", "ĠDON", "'", "T", "Ġ", *"1234", "ĠĠ", "Ġx", "Ċ", "!"]),
        ("llama-bpe", ["Don", "'t", "Ġsay", "ĠDON", "'T", "Ġ", "123", "4", "ĠĠ", "Ġx", "Ċ", "!"]),
        ("qwen2", ["Don", "'t", "Ġsay", "ĠDON", "'T", "Ġ", *"1234", "ĠĠ", "Ġx", "Ċ", "!"]),
        ("tekken", ["Don", "'t", "Ġsay", "ĠDON", "'T", "Ġ", *"1234", "ĠĠ", "Ġx", "Ċ", "!"]),
        ("gpt-4o", ["Don't", "Ġsay", "ĠDON'T", "Ġ", "123", "4", "ĠĠ", "Ġx", "Ċ", "!"]),
        (
            "deepseek-llm",
            ["Don", "'", "t", "Ġsay", "ĠDON", "'", "T", "Ġ", "1234", "ĠĠ", "Ġx", "Ċ", "!"],
        ),
        (
            "deepseek-v3",
            ["Don", "'t", "Ġsay", "ĠDON", "'T", "Ġ", "123", "4", "ĠĠ", "Ġx", "Ċ", "!"],
        ),
    ],
)
def test_each_pre_tokenizer_splits_its_own_way(pre: str, expected: list[str]) -> None:
    tokenizer = built(tokenizer_metadata(pre))
    assert pieces(tokenizer, "Don't say DON'T 1234   x\n!") == expected


@pytest.mark.parametrize(
    ("names", "same"),
    [
        ("falcon3 falcon-h1 pixtral midm-2.0 lfm2", "llama-bpe"),
        ("phi-2 gigachat a.x-4.0 mellum exaone4 mpt olmo", "gpt-2"),
        ("starcoder refact codeshell exaone minerva-7b mellum2", "smollm"),
    ],
)
def test_names_of_one_pre_tokenizer(names: str, same: str) -> None:
    assert all(PRETOKENIZERS[name] == PRETOKENIZERS[same] for name in names.split())


@pytest.mark.parametrize("name", ["smaug-bpe", "dbrx", "glm4", "chatglm-bpe"])
def test_patterns_of_llama3_alone(name: str) -> None:
    """Without its begin of text, and without words taken whole."""
    own, llama3 = PRETOKENIZERS[name], PRETOKENIZERS["llama-bpe"]
    assert own.patterns == llama3.patterns
    assert (own.whole_words, own.adds_bos, own.composes) == (False, False, False)


@pytest.mark.parametrize("name", ["deepseek-r1-qwen", "megrez", "f2llmv2", "kormo", "grok-2"])
def test_patterns_of_qwen2_alone(name: str) -> None:
    """Characters are taken as they are: composing is Qwen's own."""
    assert PRETOKENIZERS[name] == PRETOKENIZERS["qwen2"]._replace(composes=False)


def test_llama3_begins_with_bos_and_takes_known_words_whole() -> None:
    metadata = tokenizer_metadata("llama-bpe")
    metadata["tokenizer.ggml.tokens"].append("zqzqz")
    metadata["tokenizer.ggml.token_type"].append(1)
    assert built(metadata).encode("zqzqz").tokens == ["<|endoftext|>", "zqzqz"]
    metadata["tokenizer.ggml.add_bos_token"] = False
    metadata["tokenizer.ggml.add_eos_token"] = True
    assert built(metadata).encode("zqzqz").tokens == ["zqzqz", "<|endoftext|>"]


def test_qwen2_composes_characters_first() -> None:
    tokenizer = built(tokenizer_metadata("qwen2"))
    assert tokenizer.encode("cafe\u0301").ids == tokenizer.encode("caf\u00e9").ids


def sentencepiece_metadata() -> dict[str, Any]:
    """A vocabulary where greedy merging by score is not the longest match."""
    normal = ["▁", "a", "b", "c", "ab", "bc", "▁a", "abc", "▁ab", "cab", "aa", "aaa"]
    scores = [-9.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0, -5.0, -4.0, -6.0, -7.0, -7.5]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens + normal,
        "tokenizer.ggml.scores": [0.0] * len(tokens) + scores,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(normal),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def naive_sentencepiece(metadata: dict[str, Any], text: str) -> list[str]:
    """Merge the adjacent pair whose piece scores highest, leftmost first, until none is left."""
    scores = {
        token: score
        for token, score, kind in zip(
            metadata["tokenizer.ggml.tokens"],
            metadata["tokenizer.ggml.scores"],
            metadata["tokenizer.ggml.token_type"],
            strict=True,
        )
        if kind == 1
    }
    symbols = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        pairs = [(a + b, i) for i, (a, b) in enumerate(itertools.pairwise(symbols))]
        ranked = [(-scores[piece], i) for piece, i in pairs if piece in scores]
        if not ranked:
            break
        at = min(ranked)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    result: list[str] = ["<s>"]
    for symbol in symbols:
        known = symbol in scores
        result += [symbol] if known else [f"<0x{byte:02X}>" for byte in symbol.encode()]
    return result


@pytest.mark.parametrize(
    "text", ["abc", "ab c abab", "cabcab aabcc", "  b", "aaaa aaaaa", "aébc\n", "", "ccc bab"]
)
def test_sentencepiece_merges_by_score(text: str) -> None:
    metadata = sentencepiece_metadata()
    tokenizer = built(metadata)
    encoded = tokenizer.encode(text)
    assert encoded.tokens == naive_sentencepiece(metadata, text)
    assert tokenizer.decode(encoded.ids) == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model: .*got 'bert'"),
        ({"tokenizer.ggml.pre": "bloom"}, "tokenizer.ggml.pre: .*got 'bloom'"),
        (
            {"tokenizer.ggml.token_type": [1]},
            "token_type: expected 0 to 6 for each of 320 tokens, got an array of 1",
        ),
        (
            {"tokenizer.ggml.model": "llama"},
            "tokenizer.ggml.scores: expected an array of finite numbers, got none",
        ),
    ],
)
def test_what_is_not_supported_says_so(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(tokenizer_metadata() | change)


def test_a_normalization_table_is_not_supported() -> None:
    metadata = sentencepiece_metadata() | {"tokenizer.ggml.precompiled_charsmap": [1, 2]}
    with pytest.raises(ValueError, match="precompiled_charsmap: expected no normalization table"):
        built(metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.scores": [0.0]}, "scores: expected a score for each of 271 tokens"),
        (
            {"tokenizer.ggml.scores": [float("nan")] * 271},
            "scores: expected an array of finite numbers",
        ),
        ({"tokenizer.ggml.unknown_token_id": 271}, "unknown_token_id: expected a number below 271"),
        (
            {"tokenizer.ggml.bos_token_id": None},
            "bos_token_id: expected a token, since add_bos_token",
        ),
    ],
)
def test_damaged_sentencepiece_says_so(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^tokenizer.ggml.{message}"):
        built(sentencepiece_metadata() | change)


def test_a_token_without_end_is_refused() -> None:
    """Each of its cuts would be looked up."""
    metadata = sentencepiece_metadata()
    metadata["tokenizer.ggml.tokens"][-1] = "a" * 100_000
    with pytest.raises(ValueError, match="tokens: expected tokens of at most 512 characters"):
        built(metadata)


def test_the_default_splits_as_llama_cpp_does() -> None:
    """Punctuation first, then GPT-2's pattern, numbers, and three digits from the left."""
    tokenizer = built(tokenizer_metadata("default"))
    assert pieces(tokenizer, "a+b==12345 x") == ["a", "+", "b", "==", "123", "45", "Ġx"]
    assert pieces(tokenizer, "we've  don't") == ["we", "'", "ve", "Ġ", "Ġdon", "'", "t"]
