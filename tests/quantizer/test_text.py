"""Texts as token sequences: what begins them, the memory they take, and bad inputs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from models.tiny import TEXT, VOCAB_SIZE, tiny_tokenizer, write_tiny_checkpoint
from tokenizers import Tokenizer, processors

from numbacalib.models import open_checkpoint
from numbacalib.models.tokenizer import named_errors
from numbacalib.quantizer import text as text_module
from numbacalib.quantizer.text import read_sequences

BOS, EOS = "<s>", "</s>"


def checkpoint_of(tokenizer: Tokenizer, vocab_size: int = 1 << 20) -> Any:
    config = SimpleNamespace(vocab_size=vocab_size, max_position_embeddings=1 << 20)
    return SimpleNamespace(tokenizer=tokenizer, path=Path("model"), config=config)


def test_memory_is_bounded_by_what_is_kept(tmp_path: Path) -> None:
    """4 MB of text as one piece take about a gigabyte."""
    model = write_tiny_checkpoint(tmp_path / "model")
    file = tmp_path / "text.txt"
    file.write_text(TEXT * (4_000_000 // len(TEXT)), encoding="utf-8")
    script = (
        "import resource, sys\n"
        "from numbacalib.models import open_checkpoint\n"
        "from numbacalib.quantizer.text import read_sequences\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "checkpoint = open_checkpoint(sys.argv[1])\n"
        "checkpoint.tokenizer\n"
        "before = peak()\n"
        "tokens = read_sequences(checkpoint, sys.argv[2:], 128)\n"
        "print(tokens.nbytes, 1024 * (peak() - before))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, model, file], capture_output=True, text=True, check=True
    )
    kept, peak = map(int, done.stdout.split())
    assert peak < 4 * kept + (64 << 20)


def read(tokenizer: Tokenizer, file: Path, length: int, **options: Any) -> list[list[int]]:
    return read_sequences(checkpoint_of(tokenizer), [file], length, **options).tolist()


def framed(template: str | None) -> Tokenizer:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens([BOS, EOS])
    if template is not None:
        numbers = [(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)]
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(),
                processors.TemplateProcessing(single=template, special_tokens=numbers),
            ]
        )
    return tokenizer


@pytest.mark.parametrize(
    ("template", "begin"),
    [
        (None, []),
        ("$A", []),
        (f"{BOS} $A", [BOS]),
        (f"$A {EOS}", []),
        (f"{BOS} $A {EOS}", [BOS]),
        (f"{BOS} {EOS} $A", [BOS, EOS]),
        (f"{EOS} {BOS} {EOS} $A {BOS}", [EOS, BOS, EOS]),
    ],
)
def test_every_sequence_begins_as_a_text_does(
    tmp_path: Path, template: str | None, begin: list[str]
) -> None:
    file = tmp_path / "text.txt"
    file.write_text(f"{BOS} {TEXT}", encoding="utf-8")
    tokenizer = framed(template)
    own = 16 - len(begin)
    text = tokenizer.encode(file.read_text(encoding="utf-8"), add_special_tokens=False).ids
    prefix = [tokenizer.token_to_id(token) for token in begin]
    expected = [prefix + text[k : k + own] for k in range(0, len(text) - own + 1, own)]
    assert read(tokenizer, file, 16) == expected
    count = len(expected)
    assert read(tokenizer, file, 16, samples=3) == [expected[k * count // 3] for k in range(3)]


def test_special_tokens_leave_room_for_text(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    message = "sequence_length: expected more than the 2 special tokens .*, got 2"
    with pytest.raises(ValueError, match=message):
        read(framed(f"{BOS} {EOS} $A"), file, 2)


def write_tokenizer(directory: Path, change: dict[str, Any]) -> None:
    content = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    (directory / "tokenizer.json").write_text(json.dumps(content | change), encoding="utf-8")


def test_what_is_for_batches_and_training_is_reset(tmp_path: Path) -> None:
    model = write_tiny_checkpoint(tmp_path)
    plain = open_checkpoint(model).tokenizer.encode(TEXT).ids
    tokenizer = tiny_tokenizer()
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.model.dropout = 0.5
    tokenizer.save(str(model / "tokenizer.json"))
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    sequences = read_sequences(open_checkpoint(model), [file, file], 16)
    assert sequences.dtype == np.int32
    assert sequences.ravel().tolist() == (plain * 2)[: sequences.size]
    assert sequences.size > 2 * len(plain) - 16


@pytest.mark.parametrize("block", [5, 1 << 16])
def test_files_are_read_as_text(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marks, line ends and characters may lie across the bounds of blocks."""
    monkeypatch.setattr(text_module, "BLOCK", block)
    text = "one\ntwo\n\nthree\n東京 🙂 café\nx \ufeff"
    file = tmp_path / "text.txt"
    expected = tiny_tokenizer().encode(text).ids
    for mark in (b"", b"\xef\xbb\xbf"):
        for end in (b"\n", b"\r\n", b"\r"):
            file.write_bytes(mark + text.encode().replace(b"\n", end))
            tokens = read_sequences(checkpoint_of(tiny_tokenizer()), [file], 2).ravel().tolist()
            assert tokens == expected[: len(expected) // 2 * 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"abc\xff", "expected UTF-8 text, got 0xff at byte 3"),
        (b"abc\xe6\x9d", "expected UTF-8 text, got 0xe6 at byte 3"),
        (b"a\xe6\x9d\xb1\xe6b" + b"c" * 20, "expected UTF-8 text, got 0xe6 at byte 4"),
        ("abcdefg".encode("utf-16"), "expected UTF-8 text, got "),
        ("abcdefg".encode("utf-16-le"), "expected UTF-8 text, got a zero at byte 1"),
        (b"a" * 11 + b"\0", "expected UTF-8 text, got a zero at byte 11"),
        (b"", "text: expected at least 2 tokens for 1 sequence of 2, got 0"),
    ],
)
@pytest.mark.parametrize("block", [3, 4, 5, 1 << 16])
def test_what_is_no_text_says_where(
    tmp_path: Path, content: bytes, message: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_module, "BLOCK", block)
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read(tiny_tokenizer(), file, 2)


def test_what_has_no_end_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file, kind in ((tmp_path / "pipe", "a pipe"), (Path(os.devnull), "a pipe")):
        with pytest.raises(ValueError, match=f"{file}: expected a file of text, got {kind}"):
            read(tiny_tokenizer(), file, 2)
    with pytest.raises(ValueError, match="expected a file of text, got a directory"):
        read(tiny_tokenizer(), tmp_path, 2)
    with pytest.raises(FileNotFoundError, match="absent"):
        read(tiny_tokenizer(), tmp_path / "absent", 2)
    with pytest.raises(ValueError, match="text: expected at least 2 tokens .* got 0"):
        read_sequences(checkpoint_of(tiny_tokenizer()), [], 2)
    with pytest.raises(TypeError, match="text: expected a sequence of paths, got one path"):
        read_sequences(checkpoint_of(tiny_tokenizer()), "text.txt", 2)


def test_tokens_that_the_model_lacks_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(f"{TEXT} {EOS}", encoding="utf-8")
    message = f"model: expected tokens below vocab_size, {VOCAB_SIZE}, .* gives {VOCAB_SIZE + 1}"
    with pytest.raises(ValueError, match=message):
        read_sequences(checkpoint_of(framed(None), VOCAB_SIZE), [file], 2)
    with pytest.raises(ValueError, match=f"gives {VOCAB_SIZE}"):
        file.write_text(TEXT, encoding="utf-8")
        read_sequences(checkpoint_of(framed(f"{BOS} $A"), VOCAB_SIZE), [file], 2)


CHARSMAP = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
SECOND = [{"Sequence": {"id": "B", "type_id": 0}}]


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "Unigram", "unk_id": 0, "vocab": []}},
        {"normalizer": CHARSMAP},  # panics
        {"truncation": {"max_length": 3}},
        {"version": "7.0"},
    ],
)
def test_a_damaged_tokenizer_is_one_error_that_names_the_file(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path))
    write_tokenizer(tmp_path, change)
    with pytest.raises(ValueError, match=r"tokenizer.json: not a tokenizer \(\S.*\)$"):
        checkpoint.tokenizer  # noqa: B018


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "WordLevel", "unk_token": "?", "vocab": {"a": 0}}},
        {"model": {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]]}},
        {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}},  # panics
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": SECOND,
                "pair": SECOND,
                "special_tokens": {},
            }
        },  # panics
    ],
)
def test_a_tokenizer_that_fails_on_the_text_is_one_error(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path))
    write_tokenizer(tmp_path, change)
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    message = rf"{tmp_path}: its tokenizer fails on the text \(\S.*\)$"
    with pytest.raises(ValueError, match=message):
        read_sequences(checkpoint, [file], 16)


def test_an_interrupt_is_no_error_of_the_tokenizer(tmp_path: Path) -> None:
    for kind in (KeyboardInterrupt, MemoryError, ModuleNotFoundError):
        with pytest.raises(kind), named_errors(tmp_path, "not a tokenizer"):
            raise kind


def test_a_tokenizer_of_another_kind_is_called_what_it_is(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path, tokenizer=False))
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(ValueError, match=r"expected a tokenizer.json, found tekken.json"):
        checkpoint.tokenizer  # noqa: B018
