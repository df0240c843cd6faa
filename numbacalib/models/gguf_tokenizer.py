"""The tokenizer inside a GGUF file, rebuilt with the ``tokenizers`` library.

Two kinds: "gpt2" is byte-level BPE with merges and a named way of splitting text beforehand (the
names and patterns: llama.cpp, ``src/llama-vocab.cpp``); "llama" is SentencePiece BPE, where the
merge of two pieces ranks by the score of the piece that it makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["build_tokenizer", "tokenizer_config"]

# Token types of the metadata.
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPLIT = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_GPT2 = ("gpt-2", "default")
_SMOLLM = ("smollm",)
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_QWEN2 = ("qwen2",)
_PRETOKENIZERS = _GPT2 + _SMOLLM + _LLAMA3 + _QWEN2


def build_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that ``tokenizer.ggml.*`` metadata describe.

    Raises
    ------
    ValueError
        If there is none, or its kind or pre-tokenizer is not supported.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise ValueError(f"tokenizer.ggml.model: expected gpt2 or llama, got {kind!r}")
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    types = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    if not tokens or len(types) != len(tokens):
        raise ValueError(f"tokenizer: expected a type for each of {len(tokens)} tokens")
    vocabulary = {
        token: number
        for number, (token, type_) in enumerate(zip(tokens, types, strict=True))
        if type_ != _UNUSED
    }
    build = _byte_level if kind == "gpt2" else _sentencepiece
    tokenizer, adds_bos = build(metadata, vocabulary)
    _add_special_tokens(tokenizer, tokens, types)
    _frame(tokenizer, metadata, adds_bos)
    return tokenizer


def tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """``tokenizer_config.json`` for the same tokenizer, as transformers reads it."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    architecture = metadata.get("general.architecture")
    length = metadata.get(f"{architecture}.context_length")
    if length is not None:
        config["model_max_length"] = length
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    for name, short in names.items():
        number = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if number is not None:
            config[f"{short}_token"] = metadata["tokenizer.ggml.tokens"][number]
    template = metadata.get("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    return config


def _byte_level(metadata: Mapping[str, Any], vocabulary: dict[str, int]) -> tuple[Tokenizer, bool]:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    name = metadata.get("tokenizer.ggml.pre")
    if name not in _PRETOKENIZERS:
        raise ValueError(
            f"tokenizer.ggml.pre: expected one of {', '.join(_PRETOKENIZERS)}, got {name!r}"
        )
    merges = [tuple(merge.split(" ")) for merge in metadata.get("tokenizer.ggml.merges", ())]
    is_llama3 = name in _LLAMA3
    # Llama 3 takes a word that is in the vocabulary whole, even where merges would not reach it.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=is_llama3))
    by_gpt2 = name in _GPT2 + _SMOLLM
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=by_gpt2)]
    if name in _SMOLLM:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    if not by_gpt2:
        pattern = Regex(_SPLIT.replace("DIGITS", "{1,3}" if is_llama3 else ""))
        steps.insert(0, pre_tokenizers.Split(pattern, "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if name in _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer, is_llama3


def _sentencepiece(
    metadata: Mapping[str, Any], vocabulary: dict[str, int]
) -> tuple[Tokenizer, bool]:
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = metadata.get("tokenizer.ggml.scores") or []
    if len(scores) != len(metadata["tokenizer.ggml.tokens"]):
        raise ValueError("tokenizer.ggml.scores: expected a score for each token")
    if metadata.get("tokenizer.ggml.precompiled_charsmap"):
        raise ValueError("tokenizer: SentencePiece with a normalization table is not supported")
    types = metadata["tokenizer.ggml.token_type"]
    pieces = {piece: number for piece, number in vocabulary.items() if types[number] == _NORMAL}
    ranked = sorted(pieces, key=lambda piece: -scores[pieces[piece]])
    merges = [
        (piece[:cut], piece[cut:])
        for piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    unknown = metadata["tokenizer.ggml.tokens"][metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
    )
    has_prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces: list[Any] = [normalizers.Replace(" ", "▁")]
    unspaces: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if has_prefix:
        spaces.insert(0, normalizers.Prepend("▁"))
        unspaces.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(unspaces)
    return tokenizer, True


def _add_special_tokens(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Tokens that text matches whole, before any splitting."""
    from tokenizers import AddedToken

    tokenizer.add_tokens(
        [
            AddedToken(token, special=type_ == _CONTROL, normalized=False)
            for token, type_ in zip(tokens, types, strict=True)
            if type_ in (_CONTROL, _USER_DEFINED)
        ]
    )


def _frame(tokenizer: Tokenizer, metadata: Mapping[str, Any], adds_bos: bool) -> None:
    """Put the begin and end tokens around a text, where the model was trained so."""
    from tokenizers import processors

    special_tokens, template = [], "$A"
    for name, adds in (("bos", adds_bos), ("eos", False)):
        number = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if number is None or not metadata.get(f"tokenizer.ggml.add_{name}_token", adds):
            continue
        token = metadata["tokenizer.ggml.tokens"][number]
        special_tokens.append((token, number))
        template = f"{token} {template}" if name == "bos" else f"{template} {token}"
    if special_tokens:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=special_tokens
        )
