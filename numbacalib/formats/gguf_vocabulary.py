"""Tokenizer metadata of GGUF, derived from a Hugging Face checkpoint's files.

GGUF names the way of splitting text before merges (pre-tokenizer) instead of describing it. The name is
found by trial: the tokenizer that our reader builds from the metadata must give the source's tokens for a
text of many scripts. llama.cpp's converter recognizes it by a hash of such tokens instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from numbacalib.models.gguf_metadata import Metadata
from numbacalib.models.gguf_pretokenizers import DISTINCT
from numbacalib.models.gguf_tokenizer import build_tokenizer
from numbacalib.models.tokenizer import named_errors
from numbacalib.runtime.extras import extra

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from numbacalib.models import Checkpoint

PROBE = (
    " Hello  world\n\n\n\tindented x=12345678; 3.14 1,000 -- don't DON'T we'Ll I'M (a) [b] {c} naïve café "
    "Über ΑΒΓ привет 東京 ไทย हिन्दी العربية 한국어 🙂🚀 e\u0301 \u00a0 \r\n#!/bin/sh\n"
    "    return foo_bar2(); HTTPServer ''''''```` ....!!! 33 333 3333 end  "
)
"""Text on which tokenizers are compared."""

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6


def vocabulary_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return ``tokenizer.*`` of a checkpoint in a Hugging Face directory.

    Raises
    ------
    ValueError
        If the kind of tokenizer, or its way of splitting text, has no known name in GGUF.
    """
    with extra("models"):
        import tokenizers  # noqa: F401

    own = checkpoint.tokenizer
    path = checkpoint.path / "tokenizer.json"
    with named_errors(path):
        described = json.loads(own.to_str())
        if described["model"]["type"] != "BPE":
            raise ValueError(f"model.type: expected BPE, got {described['model']['type']}")
        tokens = _tokens(described, checkpoint.config.vocab_size)
        specials = _special_tokens(checkpoint, own)
        for candidate in _candidates(described, tokens, checkpoint.config.model_type):
            if _agree(build_tokenizer(Metadata(candidate | specials)), own):
                return candidate | specials | _chat_template(checkpoint)
        raise ValueError(
            "pre_tokenizer: expected text split in a way that GGUF has a name for "
            f"({', '.join(DISTINCT)}), got another one"
        )


def _tokens(described: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Tokens by number, and their types; numbers without a token are marked unused."""
    tokens, types = [f"[PAD{i}]" for i in range(size)], [_UNUSED] * size
    byte_level = not described["model"]["byte_fallback"]
    unknown = described["model"].get("unk_token")
    for token, number in described["model"]["vocab"].items():
        is_byte = not byte_level and len(token) == 6 and token.startswith("<0x")
        tokens[number] = token
        types[number] = _BYTE if is_byte else _UNKNOWN if token == unknown else _NORMAL
    for added in described["added_tokens"]:
        number, special = added["id"], added["special"]
        tokens[number] = added["content"]
        if types[number] != _UNKNOWN:
            types[number] = _CONTROL if special else _USER_DEFINED
    kind = "gpt2" if byte_level else "llama"
    return {
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
    }


def _candidates(
    described: Mapping[str, Any], tokens: dict[str, Any], model_type: str
) -> Iterator[dict[str, Any]]:
    """Metadata to try, with each way of splitting text for this kind of vocabulary."""
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in _merges(described)]
    if tokens["tokenizer.ggml.model"] == "gpt2":
        for name in DISTINCT:
            yield tokens | {"tokenizer.ggml.pre": name, "tokenizer.ggml.merges": merges}
        return
    if model_type.startswith("gemma4"):  # the converter writes merges, not scores
        yield tokens | {
            "tokenizer.ggml.model": "gemma4",
            "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.add_space_prefix": False,
        }
    ranks = {merge.replace(" ", "", 1): rank for rank, merge in reversed([*enumerate(merges)])}
    # llama.cpp merges the pair that makes the piece with the highest score
    scores = [-float(ranks.get(token, len(ranks))) for token in tokens["tokenizer.ggml.tokens"]]
    for prefix in (True, False):
        yield tokens | {
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.scores": np.array(scores, np.float32),
            "tokenizer.ggml.add_space_prefix": prefix,
        }


def _merges(described: Mapping[str, Any]) -> Iterator[Any]:
    """Merges in the order of their rank; a space within a token is spelled as in GPT-2."""
    for merge in described["model"]["merges"]:
        yield merge if isinstance(merge, str) else [part.replace(" ", "\u0120") for part in merge]


def _special_tokens(checkpoint: Checkpoint, own: Tokenizer) -> dict[str, Any]:
    """Numbers of the special tokens, and which of them are put around a text."""
    files = checkpoint.tokenizer_files()
    config = json.loads(files.get("tokenizer_config.json", b"{}"))
    found: dict[str, Any] = {}
    for short, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = config.get(f"{short}_token")
        token = token.get("content") if isinstance(token, dict) else token
        number = own.token_to_id(token) if isinstance(token, str) else None
        if number is None:
            number = checkpoint.hf_config().get(f"{short}_token_id")
        if isinstance(number, list):  # several ends, of which the first is the model's
            number = number[0]
        if number is not None and number < checkpoint.config.vocab_size:
            found[f"tokenizer.ggml.{name}_token_id"] = int(number)
    plain, framed = (own.encode("a", add_special_tokens=special).ids for special in (False, True))
    before = framed[: len(framed) - len(plain)] if framed[-len(plain) :] == plain else framed[:1]
    after = framed[len(before) + len(plain) :]
    for short, tokens in (("bos", before), ("eos", after)):
        found[f"tokenizer.ggml.add_{short}_token"] = bool(tokens)
        if len(tokens) > 1:
            raise ValueError(f"post_processor: expected at most one token, got {tokens} at an end")
        if tokens:
            found[f"tokenizer.ggml.{short}_token_id"] = tokens[0]
    return found


def _chat_template(checkpoint: Checkpoint) -> dict[str, Any]:
    files = checkpoint.tokenizer_files()
    if "chat_template.jinja" in files:
        return {"tokenizer.chat_template": files["chat_template.jinja"].decode()}
    template = json.loads(files.get("tokenizer_config.json", b"{}")).get("chat_template")
    return {"tokenizer.chat_template": template} if isinstance(template, str) else {}


def _agree(one: Tokenizer, other: Tokenizer) -> bool:
    return bool(one.encode(PROBE).ids == other.encode(PROBE).ids)
