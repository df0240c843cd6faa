"""Limits of llama.cpp's model classes: heads, biases, factors of the rotary embedding.

It refuses a file that lacks a tensor of the architecture's model class, or has an extra one:
``load_arch_tensors`` in https://github.com/ggml-org/llama.cpp/tree/master/src/models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numbacalib.models.config import ModelConfig

_OWN_HEAD = {
    *("dots1", "exaone-moe", "gpt-oss", "gptneox", "minimax-m2", "nemotron", "olmo2", "olmoe"),
    *("phi2", "qwen2moe", "stablelm"),
}
"""Architectures whose head is always a separate tensor."""
_TIED_HEAD = {"cohere2", "command-r", "gemma", "gemma2"}
"""Architectures whose head is always the embeddings; others may have either."""
_WHOLE_HEADS = {
    *("chatglm", "cohere2", "command-r", "exaone4", "falcon", "gpt2", "gptneox", "nemotron"),
    *("jais2", "lfm2", "lfm2moe", "olmo2", "olmoe", "phi2", "phi3", "qwen2", "qwen2moe", "qwen2vl"),
    *("stablelm", "starcoder", "starcoder2"),
}
"""Architectures whose query heads together must be as wide as the residual stream."""
_ALL = ("attention", "output", "mlp")
_BIASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    **dict.fromkeys(("gpt2", "gptneox", "jais2", "phi2", "starcoder", "starcoder2"), (_ALL, _ALL)),
    **dict.fromkeys(("granite", "granitehybrid", "granitemoe", "llama", "mistral3"), ((), _ALL)),
    **dict.fromkeys(("nemotron", "nemotron_h"), ((), _ALL)),
    "nemotron_h_moe": ((), ("attention", "output")),
    "ernie4_5": ((), ("attention", "output")),
    **dict.fromkeys(("falcon", "gemma4", "qwen35", "qwen35moe", "qwen3next"), ((), ())),
    "gpt-oss": (("output", "mlp"), _ALL),
}
"""Linear layers that must have biases, and those that may; elsewhere queries, keys and values may."""
_SCALINGS = {
    "gemma4": ("proportional",),
    **dict.fromkeys(
        ("arcee", "exaone", "exaone-moe", "exaone4", "granitehybrid", "llama4"), ("llama3",)
    ),
    **dict.fromkeys(("granite", "llama", "mistral3"), ("llama3", "longrope")),
    "phi3": ("longrope",),
}
"""Rotary scalings stored as tensors, in addition to linear and YaRN, which are numbers."""

_WINDOWS = {"cohere2", "exaone-moe", "gemma4", "gpt-oss"}
"""Architectures in which some layers must have a window."""


def refused(option: str, expected: Any, architecture: str, got: Any) -> ValueError:
    """Return the error for an option that llama.cpp's model class does not support."""
    return ValueError(f"{option}: expected {expected} of a {architecture} in GGUF, got {got}")


def require_loadable(config: ModelConfig, architecture: str) -> None:
    """Refuse a model that lacks tensors of llama.cpp's model class, or has extra ones.

    Raises
    ------
    ValueError
        Naming the option.
    """
    tied = config.tie_word_embeddings
    if architecture in (_OWN_HEAD if tied else _TIED_HEAD):
        raise refused("tie_word_embeddings", not tied, architecture, tied)
    whole, size = config.hidden_size // config.num_heads, config.head_dim
    if architecture in _WHOLE_HEADS and size != whole:
        raise refused("head_dim", whole, architecture, size)
    needed, allowed = _BIASES.get(architecture, ((), ("attention",)))
    for layer in _ALL:
        has = getattr(config, f"{layer}_bias")
        if layer in needed if not has else layer not in allowed:
            raise refused(f"{layer}_bias", not has, architecture, has)
    if architecture in _WINDOWS and not any(config.sliding_windows):
        raise refused("sliding_window", "a number", architecture, "none")
    kinds = ("default", "linear", "yarn", *_SCALINGS.get(architecture, ()))
    if architecture == "deepseek2":  # it treats a linear factor as YaRN's in the scale of scores
        kinds = ("default", "yarn")
    if (kind := config.rope_scaling["rope_type"]) not in kinds:
        expected = f"{', '.join(kinds[:-1])} or {kinds[-1]}"
        raise refused("rope_scaling", expected, architecture, kind)
