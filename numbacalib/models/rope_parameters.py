"""The rotary embedding's parameters, read from a configuration and checked.

transformers 5 stores them in ``rope_parameters``, earlier versions in ``rope_theta`` and ``rope_scaling``.
Precedence and the parameters of each type follow transformers 5.24 (``modeling_rope_utils.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from numbacalib.models.fields import Fields

__all__ = ["ROPE_TYPES", "STANDARD_NAMES", "RopeNames", "RopeParameters", "read_rope", "read_ropes"]
__all__ += ["yarn_magnitude"]

_DEFAULT_THETA = 10000.0
_SHARE = "partial_rotary_factor"
RopeParameters = tuple[float, dict[str, Any], int]
"""Base of a rotary embedding, its scaling, and the number of rotated dimensions."""
_THETA = (1.0001, 1e15)


class RopeNames(NamedTuple):
    """Synonyms and keys of the rotary embedding that are specific to an architecture's files."""

    synonyms: Mapping[str, str] = MappingProxyType({})
    """Alternative names of scaling types, and the types they replace."""
    others: Sequence[str] = ()
    """Keys that are read elsewhere, or have no effect."""
    theta: str = "rope_theta"
    """Top-level name of the base in files of older versions."""
    share: str = "partial_rotary_factor"
    """Top-level name of the rotated share of a head there."""


STANDARD_NAMES = RopeNames()


def yarn_magnitude(factor: float, weight: float = 1.0) -> float:
    """YaRN's scale of queries and keys (arXiv 2309.00071, equation 22), with DeepSeek's weight."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


class _Type(NamedTuple):
    """The parameters of one type of scaling."""

    required: Sequence[str] = ()
    optional: Sequence[str] = ()
    original: bool = False
    """True if it depends on the context length before scaling."""


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
"""Scaling types by their names in configuration files."""
_BY_KIND = {
    **ROPE_TYPES,
    "proportional": _Type((), ("factor", "partial_rotary_factor")),
}
"""The same, and types of models in which layers with windows have their own rotary embedding."""

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
    names: RopeNames = STANDARD_NAMES,
) -> RopeParameters:
    """Read the base of the rotary frequencies, the scaling with ``rope_type``, and the rotated dimensions.

    ``rope_scaling`` overrides ``rope_parameters``; a ``rope_theta`` inside it overrides the top-level one;
    a top-level ``original_max_position_embeddings`` overrides the one inside.

    Parameters
    ----------
    config : Fields
        The whole configuration.
    head_dim, max_positions : int
        Dimensions of a head, and the longest sequence.
    theta : float, optional
        Default base; 10000 if not given.
    share : float, optional
        Default rotated share of a head; None if whole heads are always rotated.
    original : int, optional
        Default context length before scaling; `max_positions` if not given.
    names : RopeNames, optional
        Names in the architecture's own files.

    Raises
    ------
    ValueError
        For a type that is not in `ROPE_TYPES`, and for a parameter that is missing, of the wrong
        type, out of range, or unknown for its type, such as sets of parameters by type of layer.
    """
    scaling, parameters = (
        config.object(key, None) or Fields({}, key) for key in ("rope_scaling", "rope_parameters")
    )
    rope = scaling or parameters
    dim = _rotary_dim(config, rope, head_dim, share, names)
    found = _theta(config, rope, parameters, theta or _DEFAULT_THETA, names)
    result = _read_scaling(
        config, rope, dim=dim, max_positions=original or max_positions, names=names
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
) -> tuple[RopeParameters, RopeParameters]:
    """Read base, scaling and rotated dimensions of layers without windows, and of layers with windows.

    They are in ``rope_parameters`` by type of layer. In files of transformers 4 ``rope_theta`` and
    `local_key` are default bases without and with windows, and ``rope_scaling`` overrides the former's.

    Parameters
    ----------
    config : Fields
        The whole configuration.
    dim, max_positions : int
        Dimensions of a head, and the longest sequence.
    theta, local_theta : float
        Default bases.
    local_key : str
    shares : (float, float), optional
        Default rotated shares of a head; None if whole heads are always rotated.

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
    names: RopeNames = STANDARD_NAMES,
    types: Mapping[str, _Type] = ROPE_TYPES,
) -> dict[str, Any]:
    """Read the parameters of one scaling with ``rope_type``, and refuse other keys in its object."""
    # files of 2023 have "type"; if a file has both, rope_type is used
    key, known = "rope_type" if "rope_type" in rope else "type", (*types, *names.synonyms)
    kind = rope.choice(key, known, "default")
    kind = names.synonyms.get(kind, kind)
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
        harmless=("type", "finetuned", *names.others), owner=f" in a rope of type {kind}"
    )
    return {key: value for key, value in result.items() if value is not None}


def _by_either_name(config: Fields, names: tuple[str, str], low: float, high: float) -> Any:
    """Read a number under either name; None if the file has neither.

    Raises
    ------
    ValueError
        If the two differ.
    """
    given = {name: config.number(name, low, high) for name in names if name in config}
    if len(set(given.values())) > 1:
        raise ValueError(f"{' and '.join(given)}: expected the same, got {list(given.values())}")
    return next(iter(given.values()), None)


def _rotary_dim(
    config: Fields, rope: Fields, head_dim: int, share: float | None, names: RopeNames
) -> int:
    """Read the rotated dimensions of a head; a share inside the rope's object overrides a top-level one."""
    if share is None:
        for fields in (config, rope):
            fields.choice(_SHARE, (1, 1.0), None)
        return head_dim
    beside = _by_either_name(config, (_SHARE, names.share), *_RANGES[_SHARE])
    within = rope.number(_SHARE, *_RANGES[_SHARE], None)
    given = within if within is not None else beside
    return _even(config, head_dim, share if given is None else given)


def _even(fields: Fields, head_dim: int, share: float) -> int:
    """Return the dimensions of a share of a head, checked to be even, as pairs are rotated."""
    dim = int(head_dim * share)
    if dim % 2 or not dim:
        expected = f"an even number of the {head_dim} dimensions of a head, not {dim}"
        raise fields.error(_SHARE, expected)
    return dim


def _theta(
    config: Fields, rope: Fields, parameters: Fields, default: float, names: RopeNames
) -> float:
    beside = _by_either_name(config, ("rope_theta", names.theta), *_THETA)
    if "rope_theta" in rope:
        return float(rope.number("rope_theta", *_THETA))
    if beside is None and "rope_theta" in parameters:
        # transformers would use its default here, which cannot be intended
        raise rope.error("rope_theta", "it here or at top level, as rope_parameters is not used")
    return default if beside is None else float(beside)


def _original(config: Fields, rope: Fields, max_positions: int) -> int:
    key = "original_max_position_embeddings"
    within = rope.integer(key, 2, default=None)
    beside = config.integer(key, 2, default=None)
    return int(beside or within or max_positions)


def _check_type(kind: str, rope: Fields, result: dict[str, Any], dim: int) -> None:
    """Read and check parameters that are specific to one type."""
    if kind == "yarn":
        if "truncate" in rope:
            result["truncate"] = rope.flag("truncate")
    elif kind == "dynamic" and dim < 4:
        raise rope.error("rope_type", "another type if head_dim is 2")
    elif kind == "llama3" and result["low_freq_factor"] > result["high_freq_factor"]:
        raise rope.error(
            "high_freq_factor", f"low_freq_factor {result['low_freq_factor']:g} at least"
        )
    elif kind == "longrope":
        for name in ("short_factor", "long_factor"):
            result[name] = rope.numbers(name, dim // 2, 1e-3, 1e6)
