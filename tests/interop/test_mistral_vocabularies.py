"""Mistral's own vocabularies against the libraries that they are made for: SentencePiece and tiktoken.

They are in the package mistral-common (Apache-2.0). A GGUF file has the same tokens, scores and types, and
for Tekken the merges that ranks stand for, which is how llama.cpp's converter writes them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
from models.tiny_gguf import metadata_of
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import pre_tokenizers

from numbacalib.models.gguf_tokenizer import build_tokenizer

ROOT = Path(__file__).parents[2]
SOURCE = "mistral-common==1.13.1"
SHA256 = "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af"
SENTENCEPIECE = (
    "tokenizer.model.v1",
    "mistral_instruct_tokenizer_240216.model.v2",
    "mistral_instruct_tokenizer_240323.model.v3",
    "mistral_instruct_tokenizer_241114.model.v7",
    "mistral_instruct_tokenizer_241114.model.v7m1",
)
TEKKEN = ("tekken_240718.json", "tekken_240911.json")
TEXTS = (
    "Hello world",
    " leading, and  two  spaces",
    "trailing \n\n\n lines\t\ttabs \r\n",
    "don't DON'T it's I'LL we've",
    "3.14159 1234567890 x12 ½ ²",
    "naïve café Ünïcödé ﬁ ﬀ Å Å e\u0301",
    "Съешь же ещё этих мягких французских булок",
    "東京特許許可局 한국어 ภาษาไทย हिन्दी العربية עברית",
    "🙂 👩\u200d👩\u200d👧 🇫🇷 \u200b\ufeff",
    "def f(x):\n    return {x: [i**2 for i in range(x)]}  # comment",
    "<s> </s> <unk> [INST] text",
    "\x00\x01\x7f\u0085",
    "▁ underline ▁▁",
    "CamelCaseWords HTTPServer iPhone15Pro",
)
"""What splits of words, digits and spaces, and bytes that no piece has, differ in."""


@pytest.fixture(scope="session")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the files that the package has."""
    directory = tmp_path_factory.mktemp("mistral")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*command, "--dest", str(directory), SOURCE], check=True)
    (wheel,) = directory.glob("*.whl")
    with wheel.open("rb") as content:
        assert hashlib.file_digest(content, "sha256").hexdigest() == SHA256
    with zipfile.ZipFile(wheel) as files:
        for name in (*SENTENCEPIECE, *TEKKEN):
            (directory / name).write_bytes(files.read(f"mistral_common/data/{name}"))
    return directory


def texts() -> list[str]:
    """What is named above, and the paragraphs of this project's documents."""
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    paragraphs = [part for file in documents for part in file.read_text("utf-8").split("\n\n")]
    return [*TEXTS, *paragraphs]


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_pieces_are_those_of_sentencepiece(vocabularies: Path, name: str) -> None:
    file = vocabularies / name
    theirs = SentencePieceProcessor(model_file=str(file))
    model = ModelProto.FromString(file.read_bytes())
    ggml = {
        "model": "llama",
        "tokens": [piece.piece for piece in model.pieces],
        "scores": np.array([piece.score for piece in model.pieces], np.float32),
        "token_type": np.array([piece.type for piece in model.pieces], np.int32),
        "unknown_token_id": theirs.unk_id(),
        "bos_token_id": theirs.bos_id(),
        "add_space_prefix": model.normalizer_spec.add_dummy_prefix,
    }
    ours = built(ggml)
    control = [
        piece.piece for piece in model.pieces if piece.type != ModelProto.SentencePiece.NORMAL
    ]
    # GGUF's readers take control tokens whole, SentencePiece never
    compared = [text for text in texts() if not any(token in text for token in control)]
    assert len(compared) > 0.9 * len(texts())
    for text in compared:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == theirs.encode(text), repr(text)


@pytest.mark.parametrize("name", TEKKEN)
def test_tekken_is_that_of_tiktoken(vocabularies: Path, name: str) -> None:
    file = json.loads((vocabularies / name).read_text("utf-8"))
    config = file["config"]
    special = config["default_num_special_tokens"]
    count = config["default_vocab_size"] - special
    ranks = {
        base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in file["vocab"][:count]
    }
    theirs = tiktoken.Encoding(
        name, pat_str=config["pattern"], mergeable_ranks=ranks, special_tokens={}
    )
    words = [written(token) for token in ranks]
    ggml = {
        "model": "gpt2",
        "pre": "tekken",
        "tokens": [*(f"<SPECIAL_{number}>" for number in range(special)), *words],
        "token_type": np.array([3] * special + [1] * count, np.int32),
        "merges": [f"{written(left)} {written(right)}" for left, right in merges(ranks)],
        "bos_token_id": 1,
    }
    ours = built(ggml)
    for text in texts():
        expected = [number + special for number in theirs.encode_ordinary(text)]
        assert ours.encode(text, add_special_tokens=False).ids == expected, repr(text)


def built(ggml: dict[str, Any]) -> Any:
    return build_tokenizer(metadata_of({f"tokenizer.ggml.{key}": ggml[key] for key in ggml}))


def written(token: bytes) -> str:
    """A token's bytes as GPT-2 writes them: a character each."""
    return "".join(BYTES[byte] for byte in token)


def _bytes() -> dict[int, str]:
    """GPT-2's characters: bytes that can be seen stand for themselves, the others for those from 256 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {
        byte: chr(256 + number) for number, byte in enumerate(others)
    }


BYTES = _bytes()
assert set(BYTES.values()) == set(pre_tokenizers.ByteLevel.alphabet())


def merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair that each token is made of: what is left when pairs of lower ranks are merged."""
    found = []
    for token, rank in sorted(ranks.items(), key=lambda entry: entry[1]):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            pairs = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
            best = min(pairs)
            if best >= rank:
                break
            at = pairs.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            found.append((parts[0], parts[1]))
    return found
