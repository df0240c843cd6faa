"""Texts that are tokenized in pieces: the tokens of the whole."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from models.tiny import TEXT
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from numbacalib.models import text_encoder

BOS = "<s>"

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    TEXT,
    "aa aaa ab abab ababc bcbc\n\n  def f(x):\n    return x  # ok\n",
    "東京タワー Привет мир naïve 12345 67,89 don't I'll",
]
WORDS = (
    *(
        "a",
        "aa",
        "ab",
        "abab",
        "ababc",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "def",
        "The",
        "quick",
        "café",
    ),
    *(
        "cafe\u0301",
        "\u0301",
        "東京",
        "🙂",
        "👩‍👩‍👧",
        "1",
        "12",
        "123456",
        "'s",
        "don't",
        "...",
        "!!\n",
        "ﬁ",
    ),
    *("\u00a0", "\u3000", BOS, "<tool>", " <tool> ", "cat", "bcat", "▁", "ß", "ᄀ", "ᅡ", "\u200b"),
)
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_pairs(pre: Any = None, norm: Any = None, alphabet: Any = (), **options: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**options))
    if norm is not None:
        tokenizer.normalizer = norm
    if pre is not None:
        tokenizer.pre_tokenizer = pre
    special = [token for token in ("<unk>",) if options]
    if options.get("byte_fallback"):
        special += [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special,
        initial_alphabet=list(alphabet),
        show_progress=False,
        max_token_length=12,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_special_tokens([BOS])
    tool = AddedToken("<tool>", lstrip=True, rstrip=True)
    tokenizer.add_tokens([tool, AddedToken("cat", single_word=True)])
    return tokenizer


def byte_level(norm: Any = None, first: Any = None, **options: Any) -> Tokenizer:
    pre = pre_tokenizers.ByteLevel(**{"add_prefix_space": False} | options)
    return byte_pairs(
        pre if first is None else pre_tokenizers.Sequence([first, pre]), norm, alphabet=BYTES
    )


def metaspace(fallback: bool, **options: Any) -> Tokenizer:
    pre = pre_tokenizers.Metaspace(**options)
    return byte_pairs(pre, unk_token="<unk>", fuse_unk=True, byte_fallback=fallback)


def legacy_llama() -> Tokenizer:
    norm = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return byte_pairs(norm=norm, unk_token="<unk>", fuse_unk=True, byte_fallback=True)


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer


def unigram(split: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=split)
    trainer = trainers.UnigramTrainer(
        vocab_size=150, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": byte_level,
    "gpt2-prefix": lambda: byte_level(add_prefix_space=True),
    "no-regex": lambda: byte_level(use_regex=False),
    "smollm": lambda: byte_level(first=pre_tokenizers.Digits(True)),
    "llama3": lambda: byte_level(
        first=pre_tokenizers.Split(Regex(LLAMA3), "isolated"), use_regex=False
    ),
    "nfkc-strip": lambda: byte_level(
        norm=normalizers.Sequence([normalizers.Strip(), normalizers.NFKC()]), add_prefix_space=True
    ),
    "metaspace": lambda: metaspace(True, split=False, prepend_scheme="first"),
    "metaspace-unknown": lambda: metaspace(False, split=False, prepend_scheme="always"),
    "metaspace-words": lambda: metaspace(False),
    "legacy-llama": legacy_llama,
    "wordpiece": word_piece,
    "unigram": lambda: unigram(True),
    "unigram-whole": lambda: unigram(False),
}


def checkpoint_of(tokenizer: Tokenizer) -> Any:
    config = SimpleNamespace(vocab_size=1 << 20)
    return SimpleNamespace(tokenizer=tokenizer, path=Path("model"), config=config)


def random_text(rng: random.Random, length: int) -> str:
    """Words of a random choice, some of them repeated beyond any overlap."""
    words = rng.sample(WORDS, rng.randint(len(WORDS) // 2, len(WORDS)))
    parts: list[str] = []
    while sum(map(len, parts)) < length:
        word = rng.choice(words)
        parts.append(word * rng.choice((50, 500)) if rng.random() < 0.01 else f" {word}")
    return "".join(parts)[:length]


def in_pieces(tokenizer: Tokenizer, blocks: list[str]) -> tuple[list[int], int]:
    pieces = list(text_encoder.TextEncoder(checkpoint_of(tokenizer)).pieces(blocks))
    return np.concatenate(pieces).tolist(), len(pieces)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_give_the_tokens_of_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where small overlaps see less of the text than real ones, over many joins."""
    monkeypatch.setattr(text_encoder, "OVERLAP", 256)
    tokenizer, rng, joins = KINDS[kind](), random.Random(0), 0
    for _ in range(40):
        text = random_text(rng, 8000)
        blocks = [text[begin : begin + 700] for begin in range(0, len(text), 700)]
        tokens, pieces = in_pieces(tokenizer, blocks)
        assert tokens == tokenizer.encode(text, add_special_tokens=False).ids
        joins += pieces - 1
    assert joins > 40


@pytest.mark.parametrize("kind", ["gpt2", "metaspace", "metaspace-unknown", "wordpiece", "unigram"])
@pytest.mark.parametrize(
    "run", ["a", " ", "\n", "ab", "1", "語", "é", "x ", " \n", "!", "12 "], ids=repr
)
def test_runs_give_the_tokens_of_the_whole(
    kind: str, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_encoder, "OVERLAP", 64)
    tokenizer = KINDS[kind]()
    for length in (300, 1001):
        text = f"The quick {(run * length)[:length]}<tool>23 brown fox"
        blocks = [text[begin : begin + 150] for begin in range(0, len(text), 150)]
        assert in_pieces(tokenizer, blocks)[0] == tokenizer.encode(text).ids


def test_joins_are_found_in_plain_text() -> None:
    """A piece a block, and so in the memory of a block."""
    text = TEXT * ((1 << 18) // len(TEXT))
    blocks = [text[begin : begin + (1 << 16)] for begin in range(0, len(text), 1 << 16)]
    for kind in KINDS:
        assert in_pieces(KINDS[kind](), blocks)[1] == len(blocks), kind
