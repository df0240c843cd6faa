"""GGUF options that several architectures share: windows, and sections of M-RoPE."""

from __future__ import annotations

from typing import Any

from numbacalib.models.gguf_metadata import Metadata
from numbacalib.models.windows import FULL, SLIDING, every

__all__ = [
    "ORIGINAL_LENGTH",
    "PATTERN",
    "SECTIONS",
    "WINDOW",
    "Config",
    "rope_parameters",
    "sections",
    "windows",
]

Config = dict[str, Any]
"""Keys of a Hugging Face ``config.json``."""

WINDOW = "attention.sliding_window"
PATTERN = "attention.sliding_window_pattern"
SECTIONS = "rope.dimension_sections"
ORIGINAL_LENGTH = "rope.scaling.original_context_length"


def windows(options: Metadata, config: Config, default: int, period: int) -> Config:
    """Return the window and its layers, by a flag for each layer, or all layers but every n-th."""
    window = options.integer(WINDOW, default)
    count = config["num_hidden_layers"]
    if not window:
        return {"sliding_window": None, "layer_types": [FULL] * count}
    if options.is_list(PATTERN):
        flags = options.flags(PATTERN)
        if len(flags) != count:
            raise options.error(PATTERN, f"a flag for each of {count} blocks")
        return {
            "sliding_window": window,
            "layer_types": [SLIDING if flag else FULL for flag in flags],
        }
    period = options.integer(PATTERN, period)
    if period < 1:
        raise options.error(PATTERN, "a positive number")
    return {"sliding_window": window, "layer_types": every(count, period)}


def rope_parameters(config: Config) -> Config:
    """Return the rotary embedding's parameters as one object, to which scaling may be added."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": config["rope_theta"]}}


def sections(options: Metadata, config: Config) -> Config:
    """Return the sections of M-RoPE, whose three positions are equal for text."""
    sections = [int(length) for length in options.integers(SECTIONS)]
    parameters = rope_parameters(config)["rope_parameters"] | {"mrope_section": sections}
    return {"rope_parameters": parameters, "use_sliding_window": False}
