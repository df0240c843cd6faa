"""Metadata of a GGUF file, derived from a Hugging Face checkpoint's configuration.

Keys and values are those of llama.cpp's converter:
https://github.com/ggml-org/llama.cpp/tree/master/conversion. They are read back and compared before
anything is written, since options that GGUF or llama.cpp's architecture lacks would come back changed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.gguf_limits import refused, require_loadable
from numbacalib.formats.gguf_options import WRITTEN, Options
from numbacalib.models.config import ModelConfig, Rope
from numbacalib.models.gguf_architectures import GGUF_ARCHITECTURES
from numbacalib.models.gguf_config import hf_config
from numbacalib.models.gguf_metadata import Metadata
from numbacalib.models.gguf_rope import FACTORS, LOG_MULTIPLIERS, ROPE_DIVISORS
from numbacalib.models.rope import inverse_frequencies
from numbacalib.models.rope_parameters import yarn_magnitude
from numbacalib.models.tensor_names import is_decoders
from numbacalib.models.wrappers import decoder_config

if TYPE_CHECKING:
    from numbacalib.models import Checkpoint

log = logging.getLogger("numbacalib")

QUANTIZATION_VERSION = 2
_NOT_COMPARED = {
    "model_type",  # several share one in GGUF
    "mtp_layers",  # not written
    *("rope_theta", "rope_scaling", "rotary_dim", "local_rope", "rotary_layers"),  # see _same_rope
}


def architecture_of(config: ModelConfig) -> str:
    """Return GGUF's name of a model's architecture.

    Raises
    ------
    ValueError
        If it has none that can be written.
    """
    if config.model_type not in WRITTEN:
        raise ValueError(
            f"model_type: expected one that llama.cpp converts ({', '.join(WRITTEN)}), got "
            f"{config.model_type!r}"
        )
    return WRITTEN[config.model_type].name_of(config)


def model_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return all metadata that depend neither on the tokenizer nor on how weights are stored.

    Raises
    ------
    ValueError
        If the model has an option that GGUF, or llama.cpp's model class, does not support.
    """
    config = checkpoint.config
    architecture = architecture_of(config)
    require_loadable(config, architecture)
    epsilon = "" if GGUF_ARCHITECTURES[architecture].layer_norm else "rms_"
    options: Options = {
        "block_count": config.num_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        f"attention.layer_norm_{epsilon}epsilon": float(config.rms_norm_eps),
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "vocab_size": config.vocab_size,
        "rope.freq_base": float(config.rope_theta),
        "rope.dimension_count": config.rotary_dim,
    }
    options |= _seen(checkpoint) | WRITTEN[config.model_type].options(config) | _scaling(config)
    head = {"general.architecture": architecture, "general.type": "model"}
    head["general.name"] = checkpoint.path.resolve().name
    found = head | {f"{architecture}.{key}": value for key, value in options.items()}
    _require_same(checkpoint, found)
    return found


_QWEN35_SECTIONS = (11, 11, 10, 0)
"""Sections of Qwen 3.5 if its configuration names none: its class's default."""


def _seen(checkpoint: Checkpoint) -> Options:
    """Options of a multimodal decoder: a head's sections by position, layers that get an image."""
    whole = checkpoint.hf_config()
    decoder = decoder_config(whole)
    found: Options = {}
    if decoder.get("model_type", "").startswith("qwen3_5"):
        found["rope.dimension_sections"] = np.array(_QWEN35_SECTIONS, np.int32)
    for key in ("rope_parameters", "rope_scaling"):
        if sections := (decoder.get(key) or {}).get("mrope_section"):
            padded = [*sections, 0, 0, 0, 0][:4]
            found["rope.dimension_sections"] = np.array(padded, np.int32)
    if checkpoint.config.architecture.sections and not found:
        raise ValueError(
            f"mrope_section: expected one of a {checkpoint.config.model_type} in GGUF, got none"
        )
    if levels := (whole.get("vision_config") or {}).get("deepstack_visual_indexes"):
        found["n_deepstack_layers"] = len(levels)
    return found


_STANDING = 1e30
"""Divisor of the pairs that do not rotate, as llama.cpp's converter writes it."""


def rope_tensors(config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """Tensors of the rotary embedding: divisors of frequencies, or factors of longrope."""
    given, kind = config.rope_scaling, config.rope_scaling["rope_type"]
    if kind == "longrope":
        return {name: np.array(given[key], np.float32) for key, name in FACTORS.items()}
    if kind not in ("llama3", "proportional"):
        return {}
    dim = config.rotary_dim if config.global_heads is None else config.global_heads[1]
    scaled, _ = inverse_frequencies(config.rope._replace(dim=dim), 1)
    powers = config.rope_theta ** (-np.arange(0, dim, 2) / dim)
    turning = scaled > 0
    divisors = np.where(turning, powers / np.where(turning, scaled, 1), _STANDING)
    return {ROPE_DIVISORS: divisors.astype(np.float32)}


def _require_same(checkpoint: Checkpoint, values: Mapping[str, Any]) -> None:
    """Compare the configuration with the metadata read back, in all that affects the model's results."""
    config = checkpoint.config
    described = (name for name in checkpoint.names() if is_decoders(config, name))
    shapes = {name: checkpoint.info(name).shape for name in described}
    architecture = architecture_of(config)
    read = ModelConfig.from_hf(
        hf_config(Metadata(values), architecture, shapes, rope_tensors(config))
    )
    skipped = _NOT_COMPARED if _has_own_mlp(config) else {*_NOT_COMPARED, "intermediate_size"}
    for each in fields(ModelConfig):
        one, other = getattr(config, each.name), getattr(read, each.name)
        same = one == other
        if isinstance(one, float) and isinstance(other, float):
            same = math.isclose(one, other, rel_tol=1e-6)
        if each.name not in skipped and not same:
            raise refused(each.name, other, architecture, one)
    for layer in range(config.num_layers):
        if not _same_rope(config.rope_of(layer), read.rope_of(layer)):
            raise ValueError(
                f"rotary embedding: expected that of llama.cpp's {architecture}, layer {layer} has another"
            )


def _has_own_mlp(config: ModelConfig) -> bool:
    """Return whether a block has a dense MLP, whose width is ``intermediate_size``."""
    blocks = range(config.num_layers)
    return any(config.has(index, "mlp") and config.mixture_of(index) is None for index in blocks)


def _same_rope(one: Rope | None, other: Rope | None) -> bool:
    """Return whether two rotary embeddings agree, for short sequences and the longest.

    The bounds of YaRN are truncated to whole dimensions in both.
    """
    if one is None or other is None:
        return one is other
    whole = one._replace(scaling={**one.scaling, "truncate": True})
    for length in (1, one.max_position_embeddings):
        (mine, factor), (theirs, other_factor) = (
            inverse_frequencies(rope, length) for rope in (whole, other)
        )
        if mine.shape != theirs.shape or not np.allclose(mine, theirs, rtol=1e-4):
            return False
        if not math.isclose(factor, other_factor, rel_tol=1e-4):
            return False
    return True


def _scaling(config: ModelConfig) -> dict[str, Any]:
    """Rotary scaling; llama.cpp has no dynamic one."""
    given = config.rope_scaling
    kind = given["rope_type"]
    if kind in ("default", "llama3", "proportional"):
        return {}
    if kind == "longrope":
        _, attention = inverse_frequencies(config.rope, 1)
        return {"rope.scaling.attn_factor": float(attention)}
    if kind == "linear":
        return {"rope.scaling.type": kind, "rope.scaling.factor": float(given["factor"])}
    return _yarn(config)


def _yarn(config: ModelConfig) -> Options:
    """Options of YaRN; llama.cpp always truncates its bounds to whole dimensions."""
    given = config.rope_scaling
    if not given.get("truncate", True):
        log.warning("rope_scaling: llama.cpp truncates the bounds of YaRN, the original does not")
    factor = float(given["factor"])
    options = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": int(given["original_max_position_embeddings"]),
    }
    for key in ("beta_fast", "beta_slow"):
        if given.get(key):
            options[f"rope.scaling.yarn_{key}"] = float(given[key])
    _, attention = inverse_frequencies(config.rope, 1)
    own = yarn_magnitude(factor)  # llama.cpp multiplies by this
    weight = given.get("mscale_all_dim")
    if weight and config.model_type in LOG_MULTIPLIERS:
        options["rope.scaling.yarn_log_multiplier"] = weight * LOG_MULTIPLIERS[config.model_type]
        own = attention
    if not math.isclose(attention, own):
        options["rope.scaling.attn_factor"] = attention / own
    return options
