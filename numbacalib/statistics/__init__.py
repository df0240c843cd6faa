"""Statistics that calibration collects: streaming, mergeable, savable."""

from numbacalib.statistics.gradients import GradientStatistics, load_fisher, save_fisher
from numbacalib.statistics.inputs import InputStatistics
from numbacalib.statistics.saved_inputs import (
    load_statistics,
    load_weights,
    save_statistics,
    stored_channels,
)

__all__ = [
    "GradientStatistics",
    "InputStatistics",
    "load_fisher",
    "load_statistics",
    "load_weights",
    "save_fisher",
    "save_statistics",
    "stored_channels",
]
