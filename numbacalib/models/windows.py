"""Readers of configuration keys for layers that attend to all positions or to a window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numbacalib.models.fields import LARGEST, Fields

FULL, SLIDING = "full_attention", "sliding_attention"


def kinds_of_layers(
    fields: Fields, count: int, window: int | None, default: Sequence[str] | None = None
) -> Sequence[str]:
    """Read the ``layer_types`` of a file: for each layer `FULL`, or `SLIDING` if there is a window.

    Parameters
    ----------
    fields : Fields
    count : int
        Number of layers.
    window : int or None
    default : sequence of str, optional
        Kinds for a file without this key; by default `SLIDING` everywhere if there is a window.

    Raises
    ------
    ValueError
        If a kind is unknown, or their number is not `count`.
    """
    kinds = fields.texts("layer_types", None)
    if kinds is None:
        kinds = default or [FULL if window is None else SLIDING] * count
    if len(kinds) != count:
        raise ValueError(f"layer_types: expected {count} entries, got {len(kinds)}")
    known = (FULL,) if window is None else (FULL, SLIDING)
    unknown = [kind for kind in kinds if kind not in known]
    if unknown:
        expected = " or ".join(known)
        raise ValueError(
            f"layer_types: expected {expected} in every entry, got {unknown[0][:80]!r}"
        )
    return tuple(kinds)


def windows_of_kinds(kinds: Sequence[str], window: int | None) -> dict[str, Any]:
    """Return the option ``sliding_windows``: the window of each `SLIDING` layer, None for others."""
    return {"sliding_windows": tuple(window if kind == SLIDING else None for kind in kinds)}


def every(count: int, period: int) -> list[str]:
    """Return kinds of layers: `FULL` for each `period`-th, `SLIDING` for the others."""
    return [FULL if (index + 1) % period == 0 else SLIDING for index in range(count)]


def window_of(fields: Fields, default: int | None) -> int | None:
    """Read the ``sliding_window`` of a file, null for none; the default if the key is absent."""
    window: int | None = fields.integer("sliding_window", 1, LARGEST, None)
    return default if "sliding_window" not in fields else window


def no_windows(fields: Fields, options: dict[str, Any]) -> dict[str, Any]:
    """Return full attention for all layers, and refuse windows."""
    fields.nothing("sliding_window", "use_sliding_window")  # runtimes disagree on their meaning
    fields.integer("max_window_layers", 0, LARGEST, 0)
    return windows_of_kinds(kinds_of_layers(fields, options["num_layers"], None), None)
