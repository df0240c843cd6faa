"""Layers outside of the blocks, which are quantized where it is asked for: the head and the embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from numbacalib.formats.format import Format
from numbacalib.methods import QuantizedWeight, quantize_layer
from numbacalib.models import EMBEDDINGS, Checkpoint
from numbacalib.models.layer_tensors import HEAD
from numbacalib.quantizer.calibration import TextCalibration
from numbacalib.quantizer.job import Job
from numbacalib.quantizer.layer_settings import on_grid
from numbacalib.quantizer.settings import Settings
from numbacalib.quantizer.work import FinishedBlock
from numbacalib.runtime.finite import require_finite
from numbacalib.statistics import InputStatistics

_HEAD, _EMBEDDINGS = (name.removesuffix(".weight") for name in (HEAD, EMBEDDINGS))


def head_of(checkpoint: Checkpoint) -> str:
    """Name of the layer that a model's head is: its embeddings, where they are tied."""
    return _EMBEDDINGS if checkpoint.config.tie_word_embeddings else _HEAD


def outer_layers(
    checkpoint: Checkpoint, settings: Settings, formats: Sequence[Format]
) -> list[str]:
    """Names of the layers outside of the blocks that are to be quantized.

    Raises
    ------
    ValueError
        If a format does not hold one.
    """
    head = head_of(checkpoint)
    asked = {"lm_head": head} if settings.lm_head else {}
    if settings.embeddings:
        asked["embeddings"] = _EMBEDDINGS
    for option, layer in asked.items():
        kind = {_HEAD: "a head", _EMBEDDINGS: "embeddings"}[layer]
        tied = ", which are the head of this model too" if head == layer == _EMBEDDINGS else ""
        for form in formats:
            if not form.holds(layer):
                raise ValueError(
                    f"{option}: expected formats that store {kind} quantized{tied}, got {form.name}"
                )
    return list(dict.fromkeys(asked.values()))


def is_outer(layer: str) -> bool:
    """Return whether a layer is none of a block."""
    return layer in (_HEAD, _EMBEDDINGS)


def quantize_outer(job: Job) -> FinishedBlock:
    """Quantize the layers outside of the blocks, once the text has run through all of these.

    The head is calibrated on what the final norm makes of the last block's outputs. Embeddings that are not
    the head are looked up, not multiplied: they are rounded to the nearest.
    """
    done = FinishedBlock({}, [], {}, {})
    for name in filter(is_outer, job.grids):
        stored = f"{name}.weight"
        weight = job.decoder.place.put(job.checkpoint.tensor(stored))
        require_finite(f"{job.checkpoint.path}: {stored}", weight)
        settings = on_grid(job.settings, job.grids[name])
        statistics: InputStatistics | None = None
        if name == head_of(job.checkpoint) and isinstance(job.calibration, TextCalibration):
            statistics = job.calibration.head()
        else:
            plain = {"weighted": "mse", "clip": "full"}.get(settings.ranges, settings.ranges)
            settings = replace(
                settings, method="rtn", ranges=plain, refit=False, target="layerwise"
            )
        quantized, report = quantize_layer(name, weight, statistics, settings)
        assert isinstance(quantized, QuantizedWeight)  # no codebooks: see settings.check
        done.layers[name] = quantized.to_host()
        done.reports.append(report)
    return done
