"""A run's inputs and outputs, opened and checked before its first block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.format import LayerGrid
from numbacalib.models import Checkpoint, Decoder, TensorInfo
from numbacalib.quantizer.calibration import Calibration
from numbacalib.quantizer.settings import Settings


@dataclass(frozen=True)
class Job:
    """Inputs and outputs of a run, opened and checked."""

    checkpoint: Checkpoint
    decoder: Decoder
    settings: Settings
    weights: Mapping[str, TensorInfo]
    """Of the layers that are quantized, by name without ``.weight``."""
    grids: Mapping[str, LayerGrid]
    calibration: Calibration | None
    """None is a method that needs no activations."""
    importance: Mapping[str, NDArray] | None
    tokens: int
    """Of calibration that run through the model; 0 where none do."""
    held_out: NDArray[np.integer]
    """Sequences [S, T] that the output is evaluated on; none with S = 0."""
    identity: dict[str, Any]
