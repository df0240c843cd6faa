"""Real vocabularies with the tokens that llama.cpp expects of them, as its source distribution has them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from numbacalib.models.gguf_file import GGUFFile
from numbacalib.models.gguf_tokenizer import build_tokenizer

SOURCE = "llama-cpp-python==0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
BETWEEN = "\n__ggml_vocab_test__\n"

EXPECTED = (
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "mpt",
    "phi-3",
    "qwen2",
    "qwen35",
    "refact",
    "starcoder",
)
REFUSED = {
    "aquila": "tokenizer.ggml.pre: expected one of .*, got none",
    "bert-bge": "tokenizer.ggml.model: expected gpt2, llama or gemma4, got 'bert'",
    "gpt-neox": "tokenizer.ggml.pre: expected one of .*, got none",
    "nomic-bert-moe": "tokenizer.ggml.model: expected gpt2, llama or gemma4, got 't5'",
}


@pytest.fixture(scope="session")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of ``ggml-vocab-*.gguf`` with the texts and the tokens of each."""
    directory = tmp_path_factory.mktemp("vocabularies")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", ":all:", "--dest", str(directory), SOURCE]
    subprocess.run(command, check=True)
    (archive,) = directory.glob("*.tar.gz")
    with archive.open("rb") as content:
        assert hashlib.file_digest(content, "sha256").hexdigest() == SHA256
    with tarfile.open(archive) as files:
        for member in files:
            if "/models/ggml-vocab-" in member.name and member.isfile():
                content = files.extractfile(member)
                assert content is not None
                (directory / Path(member.name).name).write_bytes(content.read())
    return directory


@pytest.mark.parametrize("name", EXPECTED)
def test_tokens_are_those_that_llama_cpp_expects(vocabularies: Path, name: str) -> None:
    file = vocabularies / f"ggml-vocab-{name}.gguf"
    tokenizer = build_tokenizer(GGUFFile(file).metadata)
    texts = Path(f"{file}.inp").read_bytes().decode().split(BETWEEN)
    lines = Path(f"{file}.out").read_text().split("\n")
    assert len(texts) > 40
    assert lines[len(texts) :] in ([], [""])
    for text, line in zip(texts, lines, strict=False):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == [int(number) for number in line.split()], repr(text)


def test_every_vocabulary_is_tried(vocabularies: Path) -> None:
    """But for one that llama.cpp has no expectations of, which is built."""
    names = {file.stem.removeprefix("ggml-vocab-") for file in vocabularies.glob("*.gguf")}
    assert names == {*EXPECTED, *REFUSED, "baichuan"}
    build_tokenizer(GGUFFile(vocabularies / "ggml-vocab-baichuan.gguf").metadata)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_named(vocabularies: Path, name: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[name]):
        build_tokenizer(GGUFFile(vocabularies / f"ggml-vocab-{name}.gguf").metadata)
