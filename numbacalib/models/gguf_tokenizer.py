"""The tokenizer inside a GGUF file, rebuilt with the ``tokenizers`` library.

Three kinds: "gpt2" is byte-level BPE with merges and a named pre-tokenizer (names and patterns:
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp); "llama" is SentencePiece BPE, where
a merge ranks by the score of the resulting piece; "gemma4" has SentencePiece's pieces and explicit merges,
within lines.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from numbacalib.models.gguf_metadata import Metadata
from numbacalib.models.gguf_pretokenizers import PRETOKENIZERS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["build_tokenizer", "tokenizer_config"]

# Token types of the metadata; the others are 0 undefined, 2 unknown and 6 byte.
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED, _LAST_TYPE = 1, 3, 4, 5, 6

_LONGEST_PIECE = 512
"""Longest SentencePiece token, in characters: every split of it is looked up. Trainers' default is 16."""

_UNDERSTOOD = {
    "add_bos_token",
    "add_eos_token",
    "add_space_prefix",
    "merges",
    "model",
    "pre",
    "scores",
    "suppress_tokens",  # for generation
    "token_type",
    "token_type_count",  # for BERT's segments
    "tokens",
}


class _Vocabulary(NamedTuple):
    tokens: list[str]
    types: list[int]

    @property
    def used(self) -> dict[str, int]:
        """Ids of the tokens that are in use."""
        return {
            token: number
            for number, (token, type_) in enumerate(zip(*self, strict=True))
            if type_ != _UNUSED
        }


def build_tokenizer(metadata: Metadata) -> Tokenizer:
    """Build the tokenizer from the ``tokenizer.ggml.*`` metadata.

    Raises
    ------
    ValueError
        If there is none, its kind or pre-tokenizer is not supported, or a part of it is damaged.
    """
    metadata = metadata.under("tokenizer.ggml.")
    kind = metadata.string("model")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece, "gemma4": _pieces_of_lines}
    if kind not in builders:
        raise metadata.error("model", "gpt2, llama or gemma4")
    _refuse_unknown(metadata)
    vocabulary = _vocabulary(metadata)
    try:
        tokenizer, adds_bos = builders[kind](metadata, vocabulary)
        _add_special_tokens(tokenizer, vocabulary)
        _frame(tokenizer, metadata, vocabulary, adds_bos)
    except Exception as error:
        if type(error) is not Exception:  # the package raises bare Exception for inconsistent parts
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"tokenizer.ggml: expected consistent parts: {reason}") from None
    return tokenizer


def tokenizer_config(metadata: Metadata) -> dict[str, Any]:
    """Return the ``tokenizer_config.json`` of the same tokenizer for transformers.

    Raises
    ------
    ValueError
        If a value has the wrong type.
    """
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    architecture = metadata.string("general.architecture")
    length = metadata.integer(f"{architecture}.context_length")
    if length is not None:
        config["model_max_length"] = length
    ggml = metadata.under("tokenizer.ggml.")
    tokens = ggml.strings("tokens")
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    for name, short in names.items():
        number = _token_id(ggml, name, len(tokens))
        if number is not None:
            config[f"{short}_token"] = tokens[number]
    template = metadata.string("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    return config


def _refuse_unknown(metadata: Metadata) -> None:
    """Refuse unsupported options that could change the tokens of a text."""
    for key in ("add_sep_token", "remove_extra_whitespaces"):
        if metadata.boolean(key, False):
            raise metadata.error(key, "false, its other value is not supported")
    if "precompiled_charsmap" in metadata:
        raise metadata.error(
            "precompiled_charsmap", "no normalization table, which is not supported"
        )
    known = _UNDERSTOOD | {"add_sep_token", "remove_extra_whitespaces"}
    for key in metadata:
        if key not in known and not key.endswith(("_token_id", "_token_ids")):
            raise metadata.error(key, "none, an option that is not supported")


def _vocabulary(metadata: Metadata) -> _Vocabulary:
    tokens = metadata.strings("tokens")
    types = [_NORMAL] * len(tokens)
    if "token_type" in metadata:
        types = metadata.integers("token_type").tolist()
    if not tokens or len(types) != len(tokens) or not 0 <= min(types) <= max(types) <= _LAST_TYPE:
        raise metadata.error("token_type", f"0 to {_LAST_TYPE} for each of {len(tokens)} tokens")
    vocabulary = _Vocabulary(tokens, types)
    used = [token for token, type_ in zip(tokens, types, strict=True) if type_ != _UNUSED]
    if len(vocabulary.used) != len(used):
        ((token, count),) = Counter(used).most_common(1)
        raise ValueError(
            f"tokenizer.ggml.tokens: expected each once, got {count} times {token[:60]!r}"
        )
    return vocabulary


def _token_id(metadata: Metadata, name: str, tokens: int) -> int | None:
    number = metadata.integer(f"{name}_token_id")
    if number is not None and not 0 <= number < tokens:
        raise metadata.error(f"{name}_token_id", f"a number below {tokens}")
    return number


def _byte_level(metadata: Metadata, vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    kind = PRETOKENIZERS.get(metadata.string("pre", ""))
    if kind is None:
        raise metadata.error("pre", f"one of {', '.join(PRETOKENIZERS)}")
    merges = _merges(metadata)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary.used, merges=merges, ignore_merges=kind.whole_words)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in kind.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    if kind.composes:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer, kind.adds_bos


def _merges(metadata: Metadata) -> list[tuple[str, str]]:
    merges = []
    for merge in metadata.strings("merges"):
        left, _, right = merge.partition(" ")
        if not left or not right or " " in right:
            raise ValueError(f"tokenizer.ggml.merges: expected pairs of tokens, got {merge[:60]!r}")
        merges.append((left, right))
    return merges


def _pieces_of_lines(metadata: Metadata, vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    number = _token_id(metadata, "unknown", len(vocabulary.tokens))
    unknown = None if number is None else vocabulary.tokens[number]
    model = models.BPE(
        vocab=vocabulary.used,
        merges=_merges(metadata),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), "isolated")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer, True


def _sentencepiece(metadata: Metadata, vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens, types = vocabulary
    scores = metadata.floats("scores")
    if len(scores) != len(tokens):
        raise metadata.error("scores", f"a score for each of {len(tokens)} tokens")
    pieces = {
        token: number for token, number in vocabulary.used.items() if types[number] == _NORMAL
    }
    if any(len(piece) > _LONGEST_PIECE for piece in pieces):
        raise metadata.error("tokens", f"tokens of at most {_LONGEST_PIECE} characters")
    ranked = sorted(pieces, key=lambda piece: -scores[pieces[piece]])
    merges = [
        (piece[:cut], piece[cut:])
        for piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    unknown = tokens[_token_id(metadata, "unknown", len(tokens)) or 0]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary.used,
            merges=merges,
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces: list[Any] = [normalizers.Replace(" ", "▁")]
    unspaces: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.boolean("add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend("▁"))
        unspaces.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(unspaces)
    return tokenizer, True


def _add_special_tokens(tokenizer: Tokenizer, vocabulary: _Vocabulary) -> None:
    """Add the tokens that are matched in the text before any splitting."""
    from tokenizers import AddedToken

    tokenizer.add_tokens(
        [
            AddedToken(token, special=type_ == _CONTROL, normalized=False)
            for token, type_ in zip(*vocabulary, strict=True)
            if type_ in (_CONTROL, _USER_DEFINED)
        ]
    )


def _frame(
    tokenizer: Tokenizer, metadata: Metadata, vocabulary: _Vocabulary, adds_bos: bool
) -> None:
    """Add the BOS and EOS tokens around a text, if the metadata say so."""
    from tokenizers import processors

    template: list[str] = ["$A"]
    special_tokens: list[tuple[str, int]] = []
    for name, default in (("bos", adds_bos), ("eos", False)):
        if not metadata.boolean(f"add_{name}_token", default):
            continue
        number = _token_id(metadata, name, len(vocabulary.tokens))
        if number is None:
            raise metadata.error(f"{name}_token_id", f"a token, since add_{name}_token is true")
        token = vocabulary.tokens[number]
        if ":" in token or token.startswith("$"):  # special characters of templates
            raise ValueError(
                f"tokenizer.ggml.{name}_token_id: expected no : or $ in it, got {token!r}"
            )
        special_tokens.append((token, number))
        template.insert(0 if name == "bos" else len(template), token)
    if special_tokens:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=special_tokens
        )
