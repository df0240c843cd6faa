"""A run's settings as those of one layer, on the grid that a format stores it on."""

from __future__ import annotations

from dataclasses import replace

from numbacalib.formats.format import LayerGrid
from numbacalib.methods import LayerSettings
from numbacalib.quantizer.settings import Settings


def on_grid(settings: Settings, grid: LayerGrid) -> LayerSettings:
    """Return the settings of a layer on its grid."""
    return replace(
        settings,
        bits=grid.bits,
        group_size=grid.group_size,
        symmetric=grid.symmetric,
        scale_dtype=grid.scale_dtype,
        find_grid=grid.find,
        element=grid.element,
    )
