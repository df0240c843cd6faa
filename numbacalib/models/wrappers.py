"""Multimodal models, which wrap a text decoder together with vision or audio towers and projectors.

The decoder's configuration is their ``text_config``; files of transformers 4 may have it at top level.
Text without other inputs runs through the decoder as through a text model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from numbacalib.models.fields import Fields

QUANTIZATION = ("quantization_config", "quantization")
"""Keys under which a configuration describes quantized weights: transformers', and MLX's."""

__all__ = ["WRAPPERS", "beside_decoder", "decoder_config", "decoder_name"]

WRAPPERS = {
    "aya_vision": "cohere2",
    "cohere2_vision": "cohere2",
    "exaone4_5": "exaone4",
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_unified_text",
    "glm46v": "glm4v_text",
    "glm4v": "glm4v_text",
    "glm4v_moe": "glm4v_moe_text",
    "idefics3": "llama",
    "internvl": "qwen2",
    "kimi_k25": "deepseek_v3",
    "kimi_vl": "deepseek_v3",
    "lfm2_vl": "lfm2",
    "lfm3_vl": "lfm3",
    "llama4": "llama4_text",
    "llava": "llama",
    "llava_next": "llama",
    "llava_onevision": "qwen2",
    "mistral3": "mistral",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen2_vl": "qwen2_vl_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "smolvlm": "llama",
}
"""By ``model_type`` of the wrapper: default ``model_type`` of its decoder."""

_SIZES = {
    "gemma3_text": {
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
    },
    "llama": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "mistral": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}
"""Default sizes of transformers' classes, which a ``text_config`` of transformers 4 omits."""
_TEXT = "text_config"
_OTHERS = ("vision_config", "audio_config")
# Prefixes of the decoder's names in such a model, of transformers 4 and 5, and our prefixes.
_PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "model.text_model.": "model.",
}


def decoder_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration of the decoder in a ``config.json``: all of it if it is not a wrapper's.

    The outer configuration says whether the head is tied (true by default); a stored head that differs is
    used all the same.

    Raises
    ------
    ValueError
        If ``text_config`` is not an object.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in WRAPPERS:
        return config
    fields = Fields(config)
    if fields.object(_TEXT, None) is not None:
        inner = {"model_type": WRAPPERS[kind], **config[_TEXT]}
        inner = {**_SIZES.get(str(inner["model_type"]), {}), **inner}
    else:
        inner = {key: value for key, value in config.items() if key not in _OTHERS}
        inner["model_type"] = WRAPPERS[kind]
    inner = {key: value for key, value in inner.items() if not _of_images(key)}
    inner["tie_word_embeddings"] = fields.flag("tie_word_embeddings", True)
    return inner | {key: config[key] for key in QUANTIZATION if key in config}


def _of_images(key: str) -> bool:
    return key.startswith(("vision_", "image_", "video_", "perceiver_", "pixel_shuffle_"))


def decoder_name(name: str) -> str:
    """Return a tensor's name in the decoder without its wrapper; other names are returned unchanged."""
    for theirs, ours in _PREFIXES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def beside_decoder(names: Iterable[str], decoder: tuple[str, ...]) -> list[str]:
    """Return the first parts of the names of modules outside the decoder, such as ``"vision_tower"``.

    Only the tower or projector itself is named, since runtimes differ in the prefixes around
    ``language_model``.

    Parameters
    ----------
    names : iterable of str
        As `decoder_name` returns them.
    decoder : tuple of str
        Prefixes of the decoder's names.
    """
    others = (name.removeprefix("model.") for name in names if not name.startswith(decoder))
    return sorted({name.split(".")[0] for name in others})
