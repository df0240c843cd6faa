"""Layers that attend to all positions or to a window, as configurations say it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numbacalib.models.fields import LARGEST, Fields

FULL, SLIDING = "full_attention", "sliding_attention"


def kinds_of_layers(
    fields: Fields, count: int, window: int | None, default: Sequence[str] | None = None
) -> Sequence[str]:
    """The ``layer_types`` of a file, `FULL` or `SLIDING` (with a window only) for each layer.

    Parameters
    ----------
    fields : Fields
    count : int
        Layers.
    window : int or None
    default : sequence of str, optional
        For a file without; `SLIDING` everywhere by default, where there is a window.

    Raises
    ------
    ValueError
        If a kind is unknown, or their number is another.
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
    """The option ``sliding_windows``: the window of each layer that slides."""
    return {"sliding_windows": tuple(window if kind == SLIDING else None for kind in kinds)}


def every(count: int, period: int) -> list[str]:
    """Layers of which each `period`-th sees all, and the others a window."""
    return [FULL if (index + 1) % period == 0 else SLIDING for index in range(count)]


def window_of(fields: Fields, default: int | None) -> int | None:
    """The ``sliding_window`` of a file, null for none; of one without, the default."""
    window: int | None = fields.integer("sliding_window", 1, LARGEST, None)
    return default if "sliding_window" not in fields else window


def no_windows(fields: Fields, options: dict[str, Any]) -> dict[str, Any]:
    """Layers that all attend to the whole sequence, whatever their file says of windows."""
    fields.nothing("sliding_window", "use_sliding_window")  # runtimes disagree about their meaning
    fields.integer("max_window_layers", 0, LARGEST, 0)
    return windows_of_kinds(kinds_of_layers(fields, options["num_layers"], None), None)
