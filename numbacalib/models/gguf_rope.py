"""Conversion of GGUF options of the rotary embedding to configuration keys.

Source for keys and tensors: llama.cpp's ``src/llama-model.cpp`` and ``src/llama-context.cpp``,
https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.config import ModelConfig
from numbacalib.models.description import Architecture
from numbacalib.models.gguf_metadata import Metadata
from numbacalib.models.gguf_windows import ORIGINAL_LENGTH
from numbacalib.models.rope import inverse_frequencies
from numbacalib.models.rope_parameters import yarn_magnitude
from numbacalib.models.windows import FULL, SLIDING

__all__ = ["FACTORS", "LOG_MULTIPLIERS", "ROPE_DIVISORS", "STILL", "rotary_share", "with_scaling"]

ROPE_DIVISORS = "rope_freqs.weight"
"""Divisors of the rotary frequencies, by which files store Llama 3's scaling."""

FACTORS = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
"""Tensors of LongRoPE's factors, by Hugging Face's names."""

LOG_MULTIPLIERS = {
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "kimi_k2", "youtu"), 0.1),
    "ministral3": 1.0,
}
"""Ratios of ``rope.scaling.yarn_log_multiplier`` to ``mscale_all_dim``, in models that use it."""


_NEVER_TURNING = {"nemotron_h"}
"""Architectures whose files have ``rope.dimension_count``, but that have no rotary embedding."""


def rotary_share(
    options: Metadata, described: Architecture, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return ``partial_rotary_factor``, for architectures that may rotate a part of each head."""
    if "latent" in described.linears:  # the rotated part of its heads is head_dim
        return {}
    if described.model_type in _NEVER_TURNING:
        return {}
    size, key = config["head_dim"], "rope.dimension_count"
    if "attention.key_length_swa" in options:
        if (local := options.integer(f"{key}_swa", size)) != size:
            raise options.error(f"{key}_swa", f"the whole head, {size}, not {local}")
        size = options.required("attention.key_length")
    dims = options.integer(key, size)
    if "partial_rotary_factor" in described.defaults:
        if not 0 < dims <= size:
            raise options.error(key, f"a part of the head's {size}")
        return {"partial_rotary_factor": dims / size}
    if dims != size:
        raise options.error(key, f"the whole head, {size}")
    return {}


def with_scaling(
    config: dict[str, Any],
    options: Metadata,
    described: Architecture,
    factors: Mapping[str, NDArray[Any]],
) -> dict[str, Any]:
    """Return a configuration with the scaling of its rotary embedding, or of both of them."""
    if FACTORS["long_factor"] in factors:
        return config | _longrope(options, factors)
    scaling = _rope_scaling(options, described)
    if ROPE_DIVISORS in factors and "global_head_dim" in config:
        scaling = _proportional(options, factors[ROPE_DIVISORS], scaling)
    elif ROPE_DIVISORS in factors:
        if scaling:
            key = options.label("rope.scaling")
            raise ValueError(f"{ROPE_DIVISORS}: expected none beside {key}")
        scaling = _llama3_scaling(config, factors[ROPE_DIVISORS])
    if described.local_rope_key:
        local = {"rope_type": "default", "rope_theta": config.pop(described.local_rope_key)}
        whole = scaling or {"rope_type": "default"}
        full = whole | {"rope_theta": config.pop("rope_theta")}
        return config | {"rope_parameters": {FULL: full, SLIDING: local}}
    if parameters := config.get("rope_parameters"):
        return config | {"rope_parameters": parameters | (scaling or {})}
    return config | {"rope_scaling": scaling} if scaling else config


def _longrope(options: Metadata, factors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return LongRoPE's parameters, with the factors from the file's tensors."""
    missing = [name for name in FACTORS.values() if name not in factors]
    if missing:
        raise ValueError(f"{missing[0]}: expected it beside the other factors, got none")
    original = options.required(ORIGINAL_LENGTH)
    scaling: dict[str, Any] = {
        "rope_type": "longrope",
        **{key: factors[name].tolist() for key, name in FACTORS.items()},
    }
    if (attention := options.number("rope.scaling.attn_factor")) is not None:
        scaling["attention_factor"] = attention
    return {"rope_scaling": scaling, "original_max_position_embeddings": original}


def _rope_scaling(options: Metadata, described: Architecture) -> dict[str, Any] | None:
    """Convert llama.cpp's keys to transformers' scaling parameters.

    The default type is linear, and a factor of 0 means no scaling.
    """
    kind = options.string("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise options.error("rope.scaling.type", "none, linear or yarn")
    factor = options.number("rope.scaling.factor", options.number("rope.scale_linear", 0.0)) or 1.0
    if factor < 0:
        raise ValueError(f"rope.scaling.factor: expected a positive number, got {factor}")
    attention = options.number("rope.scaling.attn_factor", 1.0)
    if kind != "yarn":
        if attention != 1:
            raise options.error("rope.scaling.attn_factor", "1 without the type yarn")
        return {"rope_type": kind, "factor": factor} if kind == "linear" and factor != 1 else None
    original = options.integer(ORIGINAL_LENGTH)
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original or options.required("context_length"),
    }
    for key in ("beta_fast", "beta_slow"):
        value = options.number(f"rope.scaling.yarn_{key}")
        if value is not None:
            scaling[key] = value
    weight = options.number("rope.scaling.yarn_log_multiplier", 0.0)
    if described.model_type in LOG_MULTIPLIERS and weight:
        if attention != 1:
            raise options.error("rope.scaling.attn_factor", "1 with a yarn_log_multiplier")
        weight /= LOG_MULTIPLIERS[described.model_type]
        # with latent attention llama.cpp uses one number for both
        own = weight if "latent" in described.linears else 1.0
        return scaling | {"mscale": own, "mscale_all_dim": weight}
    if "latent" in described.linears and factor > 1:
        key = "rope.scaling.yarn_log_multiplier"
        raise options.error(key, "a number with the type yarn")
    if attention != 1:  # multiplies YaRN's own factor
        scaling["attention_factor"] = attention * yarn_magnitude(factor)
    return scaling


STILL = 1e20
"""Least divisor that marks a pair of dimensions as not rotated; llama.cpp writes 1e30."""


def _proportional(
    options: Metadata, divisors: NDArray[Any], scaling: dict[str, Any] | None
) -> dict[str, Any]:
    """Return Gemma 4's parameters: only the first pairs of a head are rotated, with one divisor for all."""
    pairs = options.required("attention.key_length") // 2
    count = int((divisors < STILL).sum())
    turning = divisors[:count]
    if scaling or divisors.shape != (pairs,) or not count or not (turning == turning[0]).all():
        raise ValueError(
            f"{ROPE_DIVISORS}: expected {pairs} divisors, one number for the first pairs and {STILL:g} at "
            f"least for the others, got shape {divisors.shape}"
        )
    # a share that gives this count again when the product is rounded down
    shares = (count / pairs, (2 * count + 1) / (2 * pairs))
    share = next(share for share in shares if int(share * 2 * pairs // 2) == count)
    found = {"rope_type": "proportional", "partial_rotary_factor": share}
    return found | ({"factor": float(turning[0])} if turning[0] != 1 else {})


_LLAMA3_BOUNDS = [{"low_freq_factor": 1.0, "high_freq_factor": high} for high in (4.0, 1.0)]
"""Bounds of Llama 3, and of Llama 4."""


def _llama3_scaling(config: dict[str, Any], divisors: NDArray[Any]) -> dict[str, Any]:
    """Return the Llama 3 parameters that give the file's frequency divisors.

    The file has only the divisors. Releases so far used one of two pairs of bounds, which leaves the factor
    unknown: it is the largest divisor, and the other divisors must then agree.
    """
    plain, _ = inverse_frequencies(ModelConfig.from_hf(config).rope, 1)
    if divisors.shape != plain.shape or not np.all((divisors > 0) & np.isfinite(divisors)):
        raise ValueError(
            f"{ROPE_DIVISORS}: expected {len(plain)} positive numbers, got shape {divisors.shape}"
        )
    for bounds in _LLAMA3_BOUNDS:
        scaling = {"rope_type": "llama3", "factor": float(divisors.max()), **bounds}
        scaling["original_max_position_embeddings"] = 8192
        own = ModelConfig.from_hf(config | {"rope_scaling": scaling})
        scaled, _ = inverse_frequencies(own.rope, 1)
        if np.allclose(plain / scaled, divisors, rtol=1e-4):
            return scaling
    raise ValueError(f"{ROPE_DIVISORS}: not the divisors of Llama 3's rotary scaling")
