"""Limits of what llama.cpp's models load of a file: heads, biases, factors of the rotary embedding.

It refuses a file without a tensor that its model of a name makes, or with one that this does not make:
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
"""Architectures whose head is a tensor of its own always."""
_TIED_HEAD = {"cohere2", "command-r", "gemma", "gemma2"}
"""Architectures whose head is the embeddings always; others have either."""
_WHOLE_HEADS = {
    *("chatglm", "cohere2", "command-r", "exaone4", "falcon", "gpt2", "gptneox", "nemotron"),
    *("jais2", "lfm2", "lfm2moe", "olmo2", "olmoe", "phi2", "phi3", "qwen2", "qwen2moe", "qwen2vl"),
    *("stablelm", "starcoder", "starcoder2"),
}
"""Architectures whose heads of queries are as long together as the residual stream is wide."""
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
"""Linear layers that have biases always, and those that may; of others, queries, keys and values may."""
_SCALINGS = {
    "gemma4": ("proportional",),
    **dict.fromkeys(
        ("arcee", "exaone", "exaone-moe", "exaone4", "granitehybrid", "llama4"), ("llama3",)
    ),
    **dict.fromkeys(("granite", "llama", "mistral3"), ("llama3", "longrope")),
    "phi3": ("longrope",),
}
"""Scalings of the rotary embedding that are tensors, beside linear and YaRN, which are numbers."""

_WINDOWS = {"cohere2", "exaone-moe", "gemma4", "gpt-oss"}
"""Architectures some of whose layers have a window always."""


def refused(option: str, expected: Any, architecture: str, got: Any) -> ValueError:
    """Return the error for what llama.cpp's model of a name has not."""
    return ValueError(f"{option}: expected {expected} of a {architecture} in GGUF, got {got}")


def require_loadable(config: ModelConfig, architecture: str) -> None:
    """Refuse a model with tensors that llama.cpp's model of a name does not make, or without some it makes.

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
    if architecture == "deepseek2":  # it takes a linear factor for YaRN's where it scales scores
        kinds = ("default", "yarn")
    if (kind := config.rope_scaling["rope_type"]) not in kinds:
        expected = f"{', '.join(kinds[:-1])} or {kinds[-1]}"
        raise refused("rope_scaling", expected, architecture, kind)
