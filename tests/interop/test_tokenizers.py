"""What we feed a model against what transformers feeds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from models.tiny import TEXT, VOCAB_SIZE, tiny_config, tiny_tokenizer, write_tiny_checkpoint
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from numbacalib.models import open_checkpoint
from numbacalib.quantizer.text import read_sequences

BOS, EOS = "<s>", "</s>"

TEMPLATES: dict[str, tuple[str | None, list[str]]] = {
    "none": (None, []),
    "bos": (f"{BOS} $A", [BOS]),
    "eos": (f"$A {EOS}", []),
    "both": (f"{BOS} $A {EOS}", [BOS]),
    "two": (f"{BOS} {EOS} $A", [BOS, EOS]),
}
FLAGS = [
    {
        f"add_{name}_token": value
        for name, value in (("bos", bos), ("eos", eos))
        if value is not None
    }
    for bos, eos in ((None, None), (True, None), (False, None), (None, True), (True, True))
]
NAMES: list[dict[str, str]] = [{}, {"bos_token": BOS, "eos_token": EOS}]
SAVED = (False, True)
"""Whether truncation and padding are saved with the tokenizer."""
# Words, lines and what other kinds of tokenizers treat each in a way of their own.
PARAGRAPH = f"{TEXT}\n\n  1234 naïve,  東京\tx <s> y\u00a0z "


def byte_level() -> Tokenizer:
    tokenizer = tiny_tokenizer(VOCAB_SIZE - 2)
    tokenizer.add_special_tokens([BOS, EOS])
    return tokenizer


def metaspace() -> Tokenizer:
    """As Llama 2's: one word, unknown characters as bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<unk>", BOS, EOS] + [f"<0x{byte:02X}>" for byte in range(256)],
        limit_alphabet=40,
        max_token_length=8,
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


KINDS = {"byte_level": byte_level, "metaspace": metaspace}
CLASSES = {
    "byte_level": [None, "PreTrainedTokenizerFast", "TokenizersBackend", "LlamaTokenizerFast"],
    "metaspace": [None, "PreTrainedTokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast"],
}


def frame(tokenizer: Tokenizer, template: str | None) -> None:
    if template is not None:
        numbers = [(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=numbers
        )


def assert_fed_alike(directory: Path, theirs: Any, file: Path, begin: list[str]) -> None:
    """Cut, our sequences are their whole text's tokens; each begins as their text does."""
    checkpoint = open_checkpoint(directory)
    text = file.read_text(encoding="utf-8")
    whole = theirs(text)["input_ids"]
    assert checkpoint.tokenizer.encode(text).ids == whole

    prefix = [checkpoint.tokenizer.token_to_id(token) for token in begin]
    assert whole[: len(prefix)] == prefix
    own = theirs(text, add_special_tokens=False)["input_ids"]
    step = 32 - len(prefix)
    assert len(own) > 3 * step
    expected = [prefix + own[k : k + step] for k in range(0, len(own) - step + 1, step)]
    assert read_sequences(checkpoint, [file], 32).tolist() == expected
    assert expected[0] == whole[:32]


@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize(("template", "begin"), TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_templates_and_flags(
    tmp_path: Path, kind: str, template: str | None, begin: list[str], saved: bool
) -> None:
    """The template decides; flags and names of tokens in tokenizer_config.json have no part."""
    directory = write_tiny_checkpoint(tmp_path / "model")
    tokenizer = KINDS[kind]()
    frame(tokenizer, template)
    if saved:
        tokenizer.enable_truncation(16)
        tokenizer.enable_padding(length=16)
    tokenizer.save(str(directory / "tokenizer.json"))
    file = tmp_path / "text.txt"
    file.write_text(PARAGRAPH * 2, encoding="utf-8")
    for name in CLASSES[kind]:
        for names in NAMES:
            for flags in FLAGS:
                config = names | flags | ({} if name is None else {"tokenizer_class": name})
                (directory / "tokenizer_config.json").write_text(json.dumps(config))
                theirs = AutoTokenizer.from_pretrained(directory)
                assert_fed_alike(directory, theirs, file, begin)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3"])
def test_every_architecture(tmp_path: Path, model_type: str) -> None:
    directory = write_tiny_checkpoint(tmp_path / "model", model_type)
    tokenizer = byte_level()
    frame(tokenizer, f"{BOS} $A")
    tokenizer.save(str(directory / "tokenizer.json"))
    file = tmp_path / "text.txt"
    file.write_text(PARAGRAPH, encoding="utf-8")
    assert_fed_alike(directory, AutoTokenizer.from_pretrained(directory), file, [BOS])


def test_lines_end_as_in_text_mode(tmp_path: Path) -> None:
    """What `open` and the ``text`` loader of datasets give transformers."""
    directory = write_tiny_checkpoint(tmp_path / "model")
    file = tmp_path / "text.txt"
    file.write_bytes((PARAGRAPH * 2).replace("\n", "\r\n").encode())
    assert_fed_alike(directory, AutoTokenizer.from_pretrained(directory), file, [])


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2Tokenizer"])
def test_tokenizer_json_decides_how_a_text_is_split(tmp_path: Path, name: str) -> None:
    """Where the class that is named builds its own pre-tokenizer, we keep the one that is saved.

    transformers 5 drops SmolLM2's splitting of digits so, with which the model was trained
    (https://github.com/allenai/open-instruct/issues/1896 is the same of another model).
    """
    directory = write_tiny_checkpoint(tmp_path / "model")
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    file = tmp_path / "text.txt"
    file.write_text(PARAGRAPH * 2, encoding="utf-8")
    assert_fed_alike(directory, PreTrainedTokenizerFast.from_pretrained(directory), file, [])


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_qwens_own_tokenizer(tmp_path: Path, model_type: str) -> None:
    """A tokenizer.json of the class that transformers builds for these models."""
    directory = write_tiny_checkpoint(tmp_path / "model", model_type)
    byte_level().save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text("{}")
    theirs = AutoTokenizer.from_pretrained(directory)
    theirs.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(tiny_config(model_type)))
    file = tmp_path / "text.txt"
    file.write_text(PARAGRAPH * 2, encoding="utf-8")
    assert type(theirs).__name__ == "Qwen2Tokenizer"
    assert_fed_alike(directory, theirs, file, [])
