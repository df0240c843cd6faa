"""Inputs of a run, opened and checked, and the grids of its layers."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.format import Format, LayerGrid
from numbacalib.formats.group_lengths import listed
from numbacalib.formats.registry import common_grids, stored_format
from numbacalib.methods import LayerSettings
from numbacalib.models import Checkpoint, Decoder, Place, TensorInfo
from numbacalib.models.layer_tensors import expert_stages, stages
from numbacalib.models.sampling import Room
from numbacalib.quantizer.budget import check_formats, grids_within
from numbacalib.quantizer.calibration import Calibration, SavedCalibration, TextCalibration
from numbacalib.quantizer.identity import identity_of, settings_as_json, stamps_of
from numbacalib.quantizer.importance import read_importance
from numbacalib.quantizer.memory import Demand
from numbacalib.quantizer.outer import is_outer, outer_layers
from numbacalib.quantizer.own_text import OwnText, own_sequences, own_text_of
from numbacalib.quantizer.settings import Settings
from numbacalib.quantizer.text import evenly_spaced, read_sequences, read_split

log = logging.getLogger("numbacalib")

HELD_OUT_TOKENS = 1024
"""Tokens of the calibration text held out for evaluation by default: a few percent of a run's time."""


@dataclass(frozen=True)
class Inputs:
    """Files that a run reads, as `numbacalib.quantizer.quantize` takes them."""

    model: str | Path
    text: Sequence[str | Path]
    held_out: Sequence[str | Path]
    statistics: str | Path | None
    importance: str | Path | None

    def reported(self) -> dict[str, Any]:
        """Return the entries of a report, without the model."""
        one = {"statistics": self.statistics, "importance": self.importance}
        return {
            "text": [str(file) for file in self.text],
            "held_out": [str(file) for file in self.held_out],
        } | {name: None if file is None else str(file) for name, file in one.items()}


@dataclass(frozen=True)
class Job:
    """Inputs and outputs of a run, opened and checked."""

    checkpoint: Checkpoint
    decoder: Decoder
    settings: Settings
    weights: Mapping[str, TensorInfo]
    """Weights of the layers that are quantized, by name without ``.weight``."""
    grids: Mapping[str, LayerGrid]
    calibration: Calibration | None
    """None for a method that needs no activations."""
    importance: Mapping[str, NDArray] | None
    tokens: int
    """Calibration tokens that run through the model; 0 if none do."""
    own: OwnText | None
    """Sequences to write after the plan, before the first block; None without a text."""
    held_out: NDArray[np.integer]
    """Sequences [S, T] that the output is evaluated on; none with S = 0."""
    identity: dict[str, Any]
    free_bytes: int | None
    """Free memory where the model runs, before the run took any; None if unknown."""


def on_grid(settings: Settings, grid: LayerGrid) -> LayerSettings:
    return replace(
        settings,
        bits=grid.bits,
        group_size=grid.group_size,
        symmetric=grid.symmetric,
        scale_dtype=grid.scale_dtype,
        find_grid=grid.find,
        element=grid.element,
    )


def open_job(
    checkpoint: Checkpoint,
    inputs: Inputs,
    settings: Settings,
    formats: Sequence[Format],
    place: Place,
) -> Job:
    """Read all inputs of a run except the blocks, and check that they fit together."""
    if stored_format(checkpoint) is not None:
        raise ValueError(f"{inputs.model}: expected an unquantized checkpoint, got a quantized one")
    if checkpoint.config.mixture is not None:
        _check_experts(inputs, settings)
    if not inputs.text and inputs.statistics is None and _needs_text(inputs, settings):
        raise ValueError("text: required for calibration; --method rtn alone needs none")
    if settings.lm_head and (inputs.statistics is not None or inputs.importance is not None):
        raise ValueError("lm_head: expected a text to calibrate it on, no statistics or importance")
    free_bytes = place.free_bytes()
    decoder = Decoder(checkpoint, place=place)
    shapes = _layer_shapes(checkpoint, settings, formats)
    weights = {name: checkpoint.info(f"{name}.weight") for name in shapes}
    asked = {
        name: replace(asked_grid(settings, info.dtype), bits=settings.bits_of(name))
        for name, info in weights.items()
    }
    if settings.size is not None:
        check_formats(formats)
    stored = [each.of_model(checkpoint.config) for each in formats]
    grids = _grids(settings, stored, weights, asked)
    factors = None
    if inputs.importance is not None:
        weighed = {name: shape for name, shape in shapes.items() if not is_outer(name)}
        factors = read_importance(inputs.importance, weighed, config=checkpoint.config)
    calibration, own, others = _calibration(inputs, settings, decoder, grids)
    if inputs.held_out:
        others = read_sequences(checkpoint, inputs.held_out, settings.sequence_length)
        others = others[evenly_spaced(len(others), min(settings.samples, len(others)))]
    if settings.size is not None:
        if own is None:
            raise ValueError("size: expected a text, since it shows how many bits each layer needs")
        inner = {name: info for name, info in weights.items() if not is_outer(name)}
        asked |= grids_within(decoder, own.tokens, settings, stored, inner, asked)
        grids = _grids(settings, stored, weights, asked)
    identity = identity_of(
        checkpoint,
        place,
        None if own is None else own.tokens,
        settings=settings_as_json(settings),
        formats=[each.name for each in formats],
        **stamps_of(statistics=inputs.statistics, importance=inputs.importance),
    )
    return Job(
        checkpoint=checkpoint,
        decoder=decoder,
        settings=settings,
        weights=weights,
        grids=grids,
        calibration=calibration,
        importance=factors,
        tokens=0 if own is None else settings.samples * settings.sequence_length,
        own=own,
        held_out=others,
        identity=identity,
        free_bytes=free_bytes,
    )


def _calibration(
    inputs: Inputs, settings: Settings, decoder: Decoder, layers: Collection[str]
) -> tuple[Calibration | None, OwnText | None, NDArray[np.integer]]:
    """Open the calibration; also return its text, and sequences of the text that it does not use."""
    checkpoint, length = decoder.checkpoint, settings.sequence_length
    none_left = np.empty((0, length), np.int32)
    if inputs.statistics is not None:
        if inputs.text:
            raise ValueError("text: expected none where statistics are given")
        if settings.target == "propagated":
            raise ValueError(
                "target: expected layerwise with statistics, since only a run over a text has the "
                "quantized layers' inputs beside the original ones"
            )
        saved = SavedCalibration(inputs.statistics, checkpoint, decoder)
        return saved, None, none_left
    if not _needs_text(inputs, settings):
        return None, None, none_left
    most = max(1, HELD_OUT_TOKENS // length)
    demand = Demand.of(decoder, settings, layers)
    count = own_sequences(settings.own_text, settings.samples)
    given = checkpoint, inputs.text, length, settings.samples - count
    tokens, left = read_split(*given, most)
    streamed = demand.must_stream(settings.samples * length)
    own = own_text_of(tokens, count, demand, streamed=streamed)
    if settings.size is not None:  # bits are chosen by all of the text, before the plan
        own = OwnText(own.added(decoder), 0, Room(0))
    calibration = TextCalibration(
        decoder,
        np.resize(own.tokens, (settings.samples, length)),  # as many for the plan
        everything=settings.experts == "all",
        propagated=settings.target == "propagated",
        streamed=streamed,
    )
    return calibration, own, left


def _needs_text(inputs: Inputs, settings: Settings) -> bool:
    """Return whether a run without statistics calibrates on a text."""
    weighed = inputs.importance is not None
    return settings.calibrated(weighed) or settings.channel_scales != "none"


def _check_experts(inputs: Inputs, settings: Settings) -> None:
    """Refuse options that are not supported for a mixture of experts."""
    given = {"statistics": inputs.statistics, "importance": inputs.importance}
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name}: expected none with a model of experts, got {value}")
    if settings.size is not None:
        raise ValueError(f"size: expected none with a model of experts, got {settings.size:g}")
    if settings.target == "propagated":
        raise ValueError("target: expected layerwise with a model of experts, got 'propagated'")


def _grids(
    settings: Settings,
    formats: Sequence[Format],
    weights: Mapping[str, TensorInfo],
    asked: Mapping[str, LayerGrid],
) -> dict[str, LayerGrid]:
    """Return the grids on which the model's linear layers are stored, and log deviations."""
    grids = common_grids(formats, weights, asked)
    for grid in dict.fromkeys(grids.values()):
        on_grid(settings, grid).check()
    if any(form.own_grid for form in formats):  # no grid was requested that could deviate
        return grids
    if any(asked[name].symmetric != grid.symmetric for name, grid in grids.items()):
        log.warning("experts are on the symmetric grid: runtimes read no zero points of experts")
    others: dict[tuple[int | None, int | None], set[int]] = {}
    for name, grid in grids.items():
        sizes = asked[name].group_size, grid.group_size
        if sizes[0] != sizes[1]:
            others.setdefault(sizes, set()).add(weights[name].shape[1])
    for (size, taken), channels in others.items():
        divides = any(K % (size or 1) == 0 for K in channels)
        why = "every K, and the file format has one length" if divides else "K"
        K = listed(channels)
        log.warning(
            "group_size %s does not divide %s: groups of %s for K = %s", size, why, taken, K
        )
    return grids


def asked_grid(settings: Settings, dtype: np.dtype) -> LayerGrid:
    """Return the grid of a layer with weights of `dtype`, before a format says how it is stored."""
    unordered = settings.method == "gptq" and settings.act_order == "desc"
    return LayerGrid(
        settings.bits,
        settings.group_size,
        settings.symmetric,
        dtype,
        g_idx=unordered and not settings.static_groups,
    )


def _layer_shapes(
    checkpoint: Checkpoint, settings: Settings, formats: Sequence[Format]
) -> dict[str, tuple[int, int]]:
    """M and K of the linear layers that are quantized, by name without ``.weight``."""
    shapes = {}
    for index in range(checkpoint.config.num_layers):
        experts = chain.from_iterable(expert_stages(checkpoint.config, index))
        for kind in chain.from_iterable([*stages(checkpoint.config, index), *experts]):
            rows, channels = checkpoint.info(f"model.layers.{index}.{kind}.weight").shape
            shapes[f"model.layers.{index}.{kind}"] = rows, channels
    for name in outer_layers(checkpoint, settings, formats):
        rows, channels = checkpoint.info(f"{name}.weight").shape
        shapes[name] = rows, channels
    settings.check_layers(shapes)
    for form in formats:
        others = {name for name in shapes if not form.holds(name)}
        if others:
            log.warning(
                "%s stores no codes of %d layers, such as %s", form.name, len(others), min(others)
            )
        shapes = {name: shape for name, shape in shapes.items() if name not in others}
    return {name: shape for name, shape in shapes.items() if not settings.skips(name)}
