"""The rotary embedding's parameters, read from a configuration and checked.

transformers 5 keeps them in ``rope_parameters``; before that there were ``rope_theta`` and
``rope_scaling``. Which one counts, and which parameters a type has, is as in transformers 5.24
(``modeling_rope_utils.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from numbacalib.models.fields import Fields

__all__ = ["NO_WORDS", "ROPE_TYPES", "Turning", "Words", "read_rope", "read_ropes"]
__all__ += ["yarn_magnitude"]

_DEFAULT_THETA = 10000.0
_SHARE = "partial_rotary_factor"
Turning = tuple[float, dict[str, Any], int]
"""Base of a rotary embedding, its scaling, and how many dimensions turn."""
_THETA = (1.0001, 1e15)


class Words(NamedTuple):
    """Synonyms and keys of the rotary embedding that only an architecture's own files have."""

    synonyms: Mapping[str, str] = MappingProxyType({})
    """Types of scaling that stand for others."""
    others: Sequence[str] = ()
    """Keys that somebody else reads, or that change nothing."""
    theta: str = "rope_theta"
    """Name of the base in files of older versions, beside the scaling."""
    share: str = "partial_rotary_factor"
    """Name of the part of a head that turns there."""


NO_WORDS = Words()


def yarn_magnitude(factor: float, weight: float = 1.0) -> float:
    """By what YaRN multiplies numbers of a head (arXiv 2309.00071, equation 22), with DeepSeek's weight."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


class _Type(NamedTuple):
    """The parameters of one type of scaling."""

    required: Sequence[str] = ()
    optional: Sequence[str] = ()
    original: bool = False
    """True where it counts from the context length before the scaling."""


ROPE_TYPES = {
    "default": _Type(),
    "linear": _Type(("factor",)),
    "dynamic": _Type(("factor",)),
    "yarn": _Type(
        ("factor",),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
        original=True,
    ),
    "llama3": _Type(("factor", "low_freq_factor", "high_freq_factor"), original=True),
    "longrope": _Type((), ("factor", "attention_factor"), original=True),
}
"""Scaling variants by the name that configuration files give them."""
_BY_KIND = {
    **ROPE_TYPES,
    "proportional": _Type((), ("factor", "partial_rotary_factor")),
}
"""The same, and what only layers without windows have, where those with windows have another."""

_RANGES: dict[str, tuple[float, float]] = {
    "factor": (1, 1e6),
    "attention_factor": (1e-3, 1e3),
    "beta_fast": (1e-3, 1e6),
    "beta_slow": (1e-3, 1e6),
    "mscale": (0, 1e3),
    "mscale_all_dim": (0, 1e3),
    "partial_rotary_factor": (0.01, 1),
    "low_freq_factor": (1e-3, 1e6),
    "high_freq_factor": (1e-3, 1e6),
}


def read_rope(
    config: Fields,
    *,
    head_dim: int,
    max_positions: int,
    theta: float | None = None,
    share: float | None = None,
    original: int | None = None,
    words: Words = NO_WORDS,
) -> tuple[float, dict[str, Any], int]:
    """Base of the rotary frequencies, the scaling's parameters with ``rope_type``, and what turns.

    ``rope_scaling`` counts before ``rope_parameters``; a ``rope_theta`` in what counts before one
    beside it; ``original_max_position_embeddings`` beside before one within.

    Parameters
    ----------
    config : Fields
        The whole configuration.
    head_dim, max_positions : int
        Dimensions of a head, and the longest sequence.
    theta : float, optional
        The base where a file says none; 10000 by default.
    share : float, optional
        The part of a head that turns where a file says none; None where all of it does, always.
    original : int, optional
        The context length before the scaling where a file says none, `max_positions` by default.
    words : Words, optional
        What the architecture's own files say.

    Raises
    ------
    ValueError
        For a type that is not in `ROPE_TYPES`, and for a parameter that is missing, of the wrong
        type, out of its range, or not one of its type's; sets of parameters for each type of layer
        are not.
    """
    scaling, parameters = (
        config.object(key, None) or Fields({}, key) for key in ("rope_scaling", "rope_parameters")
    )
    rope = scaling or parameters
    dim = _rotary_dim(config, rope, head_dim, share, words)
    found = _theta(config, rope, parameters, theta or _DEFAULT_THETA, words)
    result = _read_scaling(
        config, rope, dim=dim, max_positions=original or max_positions, words=words
    )
    return found, result, dim


def read_ropes(
    config: Fields,
    *,
    dim: int,
    max_positions: int,
    theta: float,
    local_key: str,
    local_theta: float,
    shares: tuple[float, float] | None = None,
) -> tuple[Turning, Turning]:
    """Base, scaling and dimensions that turn of the layers without windows, and those of the layers with.

    They stand in ``rope_parameters`` by type of layer. Files of transformers 4 have ``rope_theta`` and
    ``rope_scaling`` for the former, which count where ``rope_parameters`` has nothing of their name, and
    `local_key` for the base of the latter.

    Parameters
    ----------
    config : Fields
        The whole configuration.
    dim, max_positions : int
        Dimensions of a head that turn, and the longest sequence.
    theta, local_theta : float
        The bases where a file says none.
    local_key : str
    shares : (float, float), optional
        The parts of a head that turn where a file says none; None where all of it does, always.

    Raises
    ------
    ValueError
        As `read_rope`.
    """
    empty: dict[str, Any] = {}
    sets = config.object("rope_parameters", None) or Fields(empty, "rope_parameters")
    full = sets.object("full_attention", None) or Fields(empty, sets.label("full_attention"))
    local = sets.object("sliding_attention", None) or Fields(empty, sets.label("sliding_attention"))
    sets.refuse_unread(owner=" in parameters by type of layer")
    if (scaling := config.object("rope_scaling", None)) is not None:
        full = full.updated(scaling)
    theta = config.number("rope_theta", *_THETA, theta)
    local_theta = config.number(local_key, *_THETA, local_theta)
    found = []
    parts = shares or (None, None)
    for rope, base, share in zip((full, local), (theta, local_theta), parts, strict=True):
        own, found_theta = dim, float(rope.number("rope_theta", *_THETA, base))
        if share is not None:
            own = _even(rope, dim, rope.number(_SHARE, *_RANGES[_SHARE], share))
        scaling = _read_scaling(config, rope, dim=own, max_positions=max_positions, types=_BY_KIND)
        found.append((found_theta, scaling, own))
    return found[0], found[1]


def _read_scaling(
    config: Fields,
    rope: Fields,
    *,
    dim: int,
    max_positions: int,
    words: Words = NO_WORDS,
    types: Mapping[str, _Type] = ROPE_TYPES,
) -> dict[str, Any]:
    """The parameters of one scaling with ``rope_type``, once nothing else is left in its object."""
    # Files of 2023 say "type"; some say both, and then it does not count.
    key, known = "rope_type" if "rope_type" in rope else "type", (*types, *words.synonyms)
    kind = rope.choice(key, known, "default")
    kind = words.synonyms.get(kind, kind)
    result: dict[str, Any] = {"rope_type": kind}
    for name in types[kind].required:
        result[name] = rope.number(name, *_RANGES[name])
    for name in types[kind].optional:
        result[name] = rope.number(name, *_RANGES[name], None)
    original = _original(config, rope, max_positions)
    if types[kind].original:
        result["original_max_position_embeddings"] = original
    _check_type(kind, rope, result, dim)
    rope.refuse_unread(
        harmless=("type", "finetuned", *words.others), owner=f" in a rope of type {kind}"
    )
    return {key: value for key, value in result.items() if value is not None}


def _by_either_name(config: Fields, names: tuple[str, str], low: float, high: float) -> Any:
    """Read what a file says under one name or the other; None where it does not.

    Raises
    ------
    ValueError
        If it says two things.
    """
    given = {name: config.number(name, low, high) for name in names if name in config}
    if len(set(given.values())) > 1:
        raise ValueError(f"{' and '.join(given)}: expected the same, got {list(given.values())}")
    return next(iter(given.values()), None)


def _rotary_dim(
    config: Fields, rope: Fields, head_dim: int, share: float | None, words: Words
) -> int:
    """Dimensions of a head that turn; what is within the rope's object counts before what is beside."""
    if share is None:
        for fields in (config, rope):
            fields.choice(_SHARE, (1, 1.0), None)
        return head_dim
    beside = _by_either_name(config, (_SHARE, words.share), *_RANGES[_SHARE])
    within = rope.number(_SHARE, *_RANGES[_SHARE], None)
    given = within if within is not None else beside
    return _even(config, head_dim, share if given is None else given)


def _even(fields: Fields, head_dim: int, share: float) -> int:
    """Dimensions of a part of a head, pairs of which turn."""
    dim = int(head_dim * share)
    if dim % 2 or not dim:
        expected = f"an even number of the {head_dim} dimensions of a head, not {dim}"
        raise fields.error(_SHARE, expected)
    return dim


def _theta(config: Fields, rope: Fields, parameters: Fields, default: float, words: Words) -> float:
    beside = _by_either_name(config, ("rope_theta", words.theta), *_THETA)
    if "rope_theta" in rope:
        return float(rope.number("rope_theta", *_THETA))
    if beside is None and "rope_theta" in parameters:
        # transformers would take its default here, which cannot be what was meant.
        raise rope.error("rope_theta", "it here or beside, as rope_parameters does not count then")
    return default if beside is None else float(beside)


def _original(config: Fields, rope: Fields, max_positions: int) -> int:
    key = "original_max_position_embeddings"
    within = rope.integer(key, 2, default=None)
    beside = config.integer(key, 2, default=None)
    return int(beside or within or max_positions)


def _check_type(kind: str, rope: Fields, result: dict[str, Any], dim: int) -> None:
    """Read and check what only one type has."""
    if kind == "yarn":
        if "truncate" in rope:
            result["truncate"] = rope.flag("truncate")
    elif kind == "dynamic" and dim < 4:
        raise rope.error("rope_type", "another one where head_dim is 2")
    elif kind == "llama3" and result["low_freq_factor"] > result["high_freq_factor"]:
        raise rope.error(
            "high_freq_factor", f"low_freq_factor {result['low_freq_factor']:g} at least"
        )
    elif kind == "longrope":
        for name in ("short_factor", "long_factor"):
            result[name] = rope.numbers(name, dim // 2, 1e-3, 1e6)
