"""Pre-tokenizers of byte-level BPE tokenizers in GGUF files, by ``tokenizer.ggml.pre``.

Names, patterns and options: ``src/llama-vocab.cpp`` of https://github.com/ggml-org/llama.cpp. Patterns are
those of the models' own tokenizers if llama.cpp's regex engine lacks a feature; NFC is applied if the
model's own tokenizer applies it.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["DISTINCT", "PRETOKENIZERS", "PreTokenizer"]


class PreTokenizer(NamedTuple):
    """Splitting of text before the merges: by each pattern in turn, into matches and gaps between them.

    With `whole_words`, a word in the vocabulary becomes one token, even if merges would not produce it;
    `composes` applies NFC first.
    """

    patterns: tuple[str, ...]
    composes: bool = False
    whole_words: bool = False
    adds_bos: bool = False


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _words(digits: str, letters: str = r"\p{L}", other: str = r"\p{L}\p{N}") -> str:
    """Return Llama 3's pattern, or one related to it."""
    return rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}| ?[^\s{other}]+[\r\n]*|{_SPACES}"


def _cased(digits: str, ending: str = "") -> str:
    """Return GPT-4o's pattern, or one related to it: words begin at capitals."""
    low, high = r"\p{Ll}\p{Lm}\p{Lo}\p{M}", r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
    begin = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{begin}[{high}]*[{low}]+{ending}|{begin}[{high}]+[{low}]*{ending}|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    )


_LLAMA3 = PreTokenizer((_words(r"\p{N}{1,3}"),), whole_words=True, adds_bos=True)
_LLAMA3_MERGED = PreTokenizer(_LLAMA3.patterns)
_GPT2_ALONE = PreTokenizer((_GPT2,))
_DIGITS = PreTokenizer((r"\p{N}", _GPT2))
_QWEN = PreTokenizer((_words(r"\p{N}"),))
_GPT4O = PreTokenizer((_cased(r"\p{N}{1,3}", f"{_ENDINGS}?"),))
_HAN = r"[一-龥\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK3 = PreTokenizer(
    (
        r"\p{N}{1,3}",
        _HAN,
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
    )
)

PRETOKENIZERS = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(
        ("llama-bpe", "llama-v3", "llama3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        _LLAMA3,
    ),
    **dict.fromkeys(("smaug-bpe", "dbrx", "glm4", "chatglm-bpe"), _LLAMA3_MERGED),
    **dict.fromkeys(
        ("gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum", "exaone4", "jais", "trillion"),
        _GPT2_ALONE,
    ),
    **dict.fromkeys(("mpt", "olmo", "granite-docling"), _GPT2_ALONE),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"), _DIGITS
    ),
    "command-r": _DIGITS._replace(composes=True),
    "qwen2": _QWEN._replace(composes=True),
    "qwen35": PreTokenizer((_words(r"\p{N}", r"[\p{L}\p{M}]", r"\p{L}\p{M}\p{N}"),)),
    **dict.fromkeys(
        ("deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open"),
        _QWEN,
    ),
    "grok-2": _QWEN,
    "seed-coder": PreTokenizer(
        (
            rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",
        )
    ),
    "tekken": PreTokenizer((_cased(r"\p{N}"),), whole_words=True, adds_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "minimax-m2"), _GPT4O),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"), _DEEPSEEK3),
    "deepseek-coder": PreTokenizer(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥\u0800-一\uac00-\ud7ff]+", r"\p{N}")
    ),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            r"\s?[\p{Lu}\p{Ll}\p{Lt}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+$",
            "[一-龥\u0800-一\uac00-\ud7ff]+",
            r"\p{N}+",
        )
    ),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
}
"""Pre-tokenizers by name."""

DISTINCT = list({kind: name for name, kind in reversed(PRETOKENIZERS.items())}.values())[::-1]
"""First name of each distinct pre-tokenizer."""
