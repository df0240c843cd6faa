"""Blocks of a model in order, each quantized on the outputs of the quantized blocks before it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.format import LayerGrid
from numbacalib.methods import (
    CodebookWeight,
    ExpertInputs,
    LayerReport,
    LayerSettings,
    QuantizedWeight,
    awq_scales,
    quantize_each,
    quantize_experts,
    quantize_layer,
    quantize_layers,
)
from numbacalib.models import DecoderBlock
from numbacalib.models.experts import Experts
from numbacalib.ops.matrix import to_host
from numbacalib.quantizer.calibration import (
    SILENT,
    Calibration,
    Group,
    Stage,
    TextCalibration,
)
from numbacalib.quantizer.expert_calibration import groups_of_weights
from numbacalib.quantizer.job import Job, on_grid
from numbacalib.quantizer.outer import head_of, is_outer
from numbacalib.quantizer.progress import Progress
from numbacalib.quantizer.settings import Settings
from numbacalib.quantizer.work import FinishedBlock, Work
from numbacalib.runtime.finite import require_finite
from numbacalib.statistics import InputStatistics

log = logging.getLogger("numbacalib")


def quantize_blocks(
    job: Job, kept: Work, planned: Sequence[float] = (), later: float = 0.0
) -> None:
    """Quantize and keep every unfinished block, then the layers outside of the blocks.

    `planned` are the expected seconds of each, `later` those of the phases that follow.
    """
    layers = job.decoder.config.num_layers
    reports: list[LayerReport] = []
    outer = any(map(is_outer, job.grids))
    with (
        Progress(
            layers + outer, done=kept.finished, unit="block", planned=planned, later=later
        ) as progress,
        np.errstate(**SILENT),
    ):
        for index in range(layers):
            if index < kept.finished:
                progress.show(f"block {index + 1} of {layers}: finished before")
                finished = kept.load(index)
                if kept.finished < layers + outer and job.calibration is not None:
                    _skip_block(job, job.decoder.block(index), finished, job.calibration)
            else:
                progress.show(f"block {index + 1} of {layers}: reading")
                block = job.decoder.block(index)
                job.checkpoint.check_unchanged()
                finished = _quantize_block(job, index, block, reports, progress)
                kept.save(index, finished)
            reports += finished.reports
            if index >= kept.finished:
                progress.step(f"block {index + 1} of {layers}")
        if outer and kept.finished <= layers:
            progress.show("quantizing what is outside of the blocks")
            finished = _quantize_outer(job)
            kept.save(layers, finished)
            _check_fallbacks([*reports, *finished.reports], len(job.grids), job.settings)
            reports += finished.reports
            progress.step("outside of the blocks")
        kept.settle()
    _warn_of_calibration(reports)


def _quantize_block(
    job: Job,
    index: int,
    block: DecoderBlock,
    before: Sequence[LayerReport],
    progress: Progress,
) -> FinishedBlock:
    """Quantize a block and replace its weights; `before` are the reports of earlier blocks."""
    settings, count = job.settings, job.decoder.config.num_layers
    at = f"block {index + 1} of {count}"
    done = FinishedBlock({}, [], {}, {})
    run: Iterable[Group]
    if job.calibration is None:
        run = _without_calibration(block, job.decoder.place.held_bytes)
    else:
        folded: dict[Stage, NDArray] = {}
        if settings.channel_scales == "awq":
            progress.show(f"{at}: scaling channels")
            preview = job.calibration.preview(index, block)
            folded = fold_scales(job, block, preview, done)
        run = job.calibration.stages(index, block, folded)
    for group in run:
        inputs = {kind: given for stage, given in group for kind in stage}
        own = _layer_settings(block, settings, job.grids, inputs)
        for kinds in _equal_layers(group, own):
            shown = kinds if len(kinds) < 4 else (kinds[0], "...", kinds[-1])
            progress.show(f"{at}: quantizing {', '.join(shown)}")
            results = quantize_group(
                job, block, {kind: inputs[kind] for kind in kinds}, own[kinds[0]]
            )
            for kind, (quantized, report) in zip(kinds, results, strict=True):
                # no codebooks: see settings.check
                assert isinstance(quantized, QuantizedWeight)
                block.linears[kind] = quantized.dequantize(block.dtype)
                done.layers[f"{block.name}.{kind}"] = quantized.to_host()
                done.reports.append(report)
        _check_fallbacks([*before, *done.reports], len(job.grids), settings)
        progress.show(f"{at}: running the text through it")
    return done


def _quantize_outer(job: Job) -> FinishedBlock:
    """Quantize the layers outside of the blocks, once the text has run through all blocks.

    The head is calibrated on the final norm of the last block's outputs; if only the format quantizes it,
    it is rounded on weighted scales. Embeddings that are not the head are looked up, not multiplied: they
    are rounded to nearest.
    """
    done, place = FinishedBlock({}, [], {}, {}), job.decoder.place
    for name in filter(is_outer, job.grids):
        stored = f"{name}.weight"
        values = job.checkpoint.tensor(stored)
        weight = place.put(values, place.product_dtype(values.dtype))  # as those of blocks
        require_finite(f"{job.checkpoint.path}: {stored}", weight)
        settings = on_grid(job.settings, job.grids[name])
        statistics: InputStatistics | None = None
        if name == head_of(job.checkpoint) and isinstance(job.calibration, TextCalibration):
            statistics = job.calibration.head()
        rounded: dict[str, Any] = {
            "method": "rtn",
            "refit": False,
            "passes": 0,
            "target": "layerwise",
        }
        if statistics is None:
            plain = {"weighted": "mse", "clip": "full"}.get(settings.ranges, settings.ranges)
            settings = replace(settings, ranges=plain, **rounded)
        elif not job.settings.lm_head:
            settings = replace(settings, ranges="weighted", **rounded)
        quantized, report = quantize_layer(name, weight, statistics, settings)
        assert isinstance(quantized, QuantizedWeight)  # no codebooks: see settings.check
        done.layers[name] = quantized.to_host()
        done.reports.append(report)
    return done


def _without_calibration(block: DecoderBlock, most_bytes: int) -> Iterator[Group]:
    """All layers of a block, for a method that needs no activations."""
    for stage in block.stages:
        yield [(stage, None)]
    if isinstance(block.mlp, Experts):
        yield from groups_of_weights(block, most_bytes)


def _equal_layers(group: Group, settings: Mapping[str, LayerSettings]) -> list[Stage]:
    """Split a group into layers that are quantized together, in the order they run."""
    (stage, inputs), *others = group
    stages = [stage]
    if others or isinstance(inputs, ExpertInputs):
        stages = list(zip(*(stage for stage, _ in group), strict=True))
    return [kinds for stage in stages for kinds in _alike(stage, settings)]


def quantize_group(
    job: Job, block: DecoderBlock, inputs: Mapping[str, Any], settings: LayerSettings
) -> list[tuple[QuantizedWeight | CodebookWeight, LayerReport]]:
    """Quantize layers together, from the statistics of the `inputs` of each."""
    weights = {f"{block.name}.{kind}": block.linears[kind] for kind in inputs}
    known = list(inputs.values())
    if isinstance(known[0], ExpertInputs):
        return quantize_experts(weights, known, settings)
    if any(own is not known[0] for own in known) or (known[0] is None and job.importance is None):
        return quantize_each(weights, known, settings)
    factors = None
    if job.importance is not None:
        factors = {name: job.decoder.place.put(job.importance[name]) for name in weights}
    return quantize_layers(weights, known[0], settings, factors)


def _skip_block(
    job: Job, block: DecoderBlock, finished: FinishedBlock, calibration: Calibration
) -> None:
    """Advance the calibration past a finished block, with the same folds and quantized weights."""
    place = job.decoder.place
    for stage in block.stages:
        if stage[0] in finished.scales:
            scales = place.put(finished.scales[stage[0]])
            block.fold(stage, scales, _producer_dtype(job, block, stage))
    original = block.copied()

    def dequantized(weight: QuantizedWeight) -> Any:
        arrays = {name: place.put(getattr(weight, name)) for name in ("codes", "scales", "zeros")}
        return replace(weight, **arrays).dequantize(block.dtype)

    for name, weight in finished.layers.items():
        kind = name.removeprefix(f"{block.name}.")
        if kind in block.linears:
            block.linears[kind] = dequantized(weight)
    block.read_experts(
        lambda kinds: {
            kind: dequantized(finished.layers[name])
            for kind in kinds
            if (name := f"{block.name}.{kind}") in finished.layers
        }
    )
    calibration.skip(block, original)


def _layer_settings(
    block: DecoderBlock, settings: Settings, grids: Mapping[str, LayerGrid], kinds: Iterable[str]
) -> dict[str, LayerSettings]:
    """Settings of a block's quantized layers by short name, each on its stored grid."""
    return {
        kind: on_grid(settings, grids[name])
        for kind in kinds
        if (name := f"{block.name}.{kind}") in grids
    }


def _alike(stage: Stage, settings: Mapping[str, LayerSettings]) -> list[Stage]:
    """Split a stage's layers that have settings into runs of equal settings."""
    groups: list[list[str]] = []
    for kind in (kind for kind in stage if kind in settings):
        if groups and settings[groups[-1][0]] == settings[kind]:
            groups[-1].append(kind)
        else:
            groups.append([kind])
    return [tuple(group) for group in groups]


def fold_scales(
    job: Job,
    block: DecoderBlock,
    preview: Sequence[tuple[Stage, InputStatistics]],
    done: FinishedBlock,
) -> dict[Stage, NDArray]:
    """Scale the block's channels by AWQ where a producer can absorb the scales and no layer is skipped.

    Returns the scales by stage; `done` gets them too, with the vectors that changed.
    """
    layer_settings = _layer_settings(block, job.settings, job.grids, block.linears)
    folded: dict[Stage, NDArray] = {}
    for stage, statistics in preview:
        producer = block.producer(stage)
        changed_layers = {*stage, producer} & block.linears.keys()
        if producer is None or not changed_layers <= layer_settings.keys():
            continue
        found = awq_scales(
            [block.linears[kind] for kind in stage],
            statistics.hessian,
            statistics.mean_abs if job.settings.awq_magnitude == "mean" else statistics.max_abs,
            weight_term=job.settings.awq_weight_term,
            bits=layer_settings[stage[0]].bits,
            group_size=layer_settings[stage[0]].group_size,
            symmetric=layer_settings[stage[0]].symmetric,
            scale_dtype=layer_settings[stage[0]].scale_dtype,
            element=layer_settings[stage[0]].element,
        )
        done.scales[stage[0]] = to_host(found.scales)
        folded[stage], changed = block.fold(stage, found.scales, _producer_dtype(job, block, stage))
        done.vectors.update({f"{block.name}.{name}": vector for name, vector in changed.items()})
    return folded


def _producer_dtype(job: Job, block: DecoderBlock, stage: Stage) -> np.dtype:
    """Stored dtype of the weight that absorbs a stage's channel scales."""
    return job.checkpoint.info(f"{block.name}.{block.producer(stage)}.weight").dtype


def _check_fallbacks(reports: Sequence[LayerReport], layers: int, settings: Settings) -> None:
    """Raise an error as soon as too many layers needed more damping than `percdamp`."""
    count = sum(report.fell_back for report in reports)
    if count > settings.max_fallbacks * layers:
        raise np.linalg.LinAlgError(
            f"{count} of {layers} layers needed more damping than percdamp {settings.percdamp:g}, "
            f"above the share of {settings.max_fallbacks:g}: {reports[-1].name} was the last"
        )


def _warn_of_calibration(reports: Sequence[LayerReport]) -> None:
    """Warn of layers for which the text was too short or too uniform, or which it did not reach."""
    remedy = "calibrate on more text, or shrink the Hessian toward its diagonal"
    if remedied := [report for report in reports if report.remedy is not None]:
        log.warning(
            "%d of %d layers were of experts that saw few tokens (%d for %d, %s): %d were solved from all "
            "tokens of their block, the others with a shrunk Hessian",
            len(remedied),
            len(reports),
            remedied[0].tokens,
            remedied[0].shape[1],
            remedied[0].name,
            sum(report.remedy == "pooled" for report in remedied),
        )
        reports = [report for report in reports if report.remedy is None]
    if poor := [report for report in reports if report.full_rank is False]:
        log.warning(
            "%d of %d layers had fewer tokens than channels (%d for %d, %s): %s",
            len(poor),
            len(reports),
            poor[0].tokens,
            poor[0].shape[1],
            poor[0].name,
            remedy,
        )
    if low := [report for report in reports if report.low_rank]:
        worst = min(low, key=lambda report: (report.effective_rank or 0) / report.shape[1])
        log.warning(
            "the inputs of %d of %d layers vary in few directions (%s: effective rank %.3g of %d, from "
            "%d tokens that are much alike): %s",
            len(low),
            len(reports),
            worst.name,
            worst.effective_rank,
            worst.shape[1],
            worst.tokens,
            remedy.replace("more text", "more varied text"),
        )
    if dead := [report for report in reports if report.dead == report.shape[1]]:
        log.warning(
            "%d of %d layers had inputs of zeros alone (%s): gptq makes their weights 0",
            len(dead),
            len(reports),
            dead[0].name,
        )
