"""Seconds that the parts of a run take on this machine, measured at its start.

Sequences of the text pass through the first block, and the layers of its smallest stage and of a larger one
are quantized; each twice, since the first time may compile kernels. First come one sequence and the
smallest stage, whatever they take, then as many sequences and as large a stage as fit into `SECONDS`. For
the proof, a sequence passes through the block without statistics, and scores are compared.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from numbacalib.formats.bit_packing import pack_bits, unpack_bits
from numbacalib.methods import QuantizedWeight
from numbacalib.models import Decoder, DecoderBlock
from numbacalib.models.decoder import VOCABULARY
from numbacalib.models.layer_tensors import Stage, expert_shapes, linear_shapes
from numbacalib.models.loss_sums import LossSums
from numbacalib.ops import divergence, sampling
from numbacalib.ops.matrix import to_host
from numbacalib.quantizer.blocks import fold_scales, quantize_group
from numbacalib.quantizer.calibration import SILENT, TextCalibration
from numbacalib.quantizer.distributions import Distributions
from numbacalib.quantizer.job import Job, on_grid
from numbacalib.quantizer.memory import stage_size
from numbacalib.quantizer.outer import is_outer
from numbacalib.quantizer.work import FinishedBlock
from numbacalib.terminal import reporting, silent

TRIED_ROWS = 256
"""Most tokens whose logits are compared."""
SECONDS = 2.0
"""Longest time for a larger part of the trial, as estimated from a small one."""


class Trial(NamedTuple):
    """Seconds that parts of a run take."""

    reading: float
    """Of reading a weight to run it."""
    batch: float
    """Of a batch through a block, with the statistics of the inputs, whatever its tokens."""
    calibrating: float
    """Of a token through a weight, on top of that."""
    forward: float
    """Of a token through a weight, without statistics."""
    score: float
    """Of a score of a token, in the losses of both models and their divergence."""
    stage: float
    """Of a stage, whatever its size."""
    work: float
    """Of a unit of `stage_work`."""
    scaling: float
    """Of a unit of `search_work`."""
    storing: float
    """Of packing and unpacking a weight's code."""
    compiling: float
    """Of kernels, which are compiled now."""


def try_out(job: Job) -> Trial:
    """Measure on the first block that is quantized."""
    # the first block with a layer that is not skipped
    index = min(int(name.split(".")[2]) for name in job.grids if not is_outer(name))
    with reporting(silent), np.errstate(**SILENT):
        block, _, reading = _twice(lambda: job.decoder.block(index))
        found: Mapping[Any, Any] = {}
        batch = calibrating = forward = score = compiling = 0.0
        calibration = job.calibration
        if isinstance(calibration, TextCalibration):
            found, (batch, calibrating), compiling = _pass_text(calibration, block)
        elif calibration is not None:
            found = dict(calibration.preview(index, block))
        if len(job.held_out):
            forward, compiling_forward = _pass_through(job, block)
            score, compiling_scores = _compare_scores(job.decoder)
            compiling += compiling_forward + compiling_scores
        if job.own is not None and job.own.count:
            compiling += _draw(job.decoder)
        scaling, compiling_search = _search_scales(job, index, block, found)
        storing, stage, work, compiling_solvers = _quantize_stages(job, index, block, found)
    weights = token_weights(job, index)
    return Trial(
        reading=reading / block_weights(job, index),
        batch=batch,
        calibrating=calibrating / weights,
        forward=forward / weights,
        score=score,
        stage=stage,
        work=work,
        scaling=scaling,
        storing=storing,
        compiling=compiling + compiling_search + compiling_solvers,
    )


def block_weights(job: Job, index: int) -> int:
    """Weights of a block's linear layers, with those of all its experts."""
    return _weights(linear_shapes(job.decoder.config, index)) + _expert_weights(job, index)


def token_weights(job: Job, index: int) -> float:
    """Weights of a block that a token meets, including those of the experts chosen for it."""
    config = job.decoder.config
    mixture = config.mixture_of(index)
    chosen = 0.0 if mixture is None else mixture.routing.experts / mixture.experts
    return _weights(linear_shapes(config, index)) + chosen * _expert_weights(job, index)


def _expert_weights(job: Job, index: int) -> int:
    return _weights(expert_shapes(job.decoder.config, index))


def _weights(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes.values()))


def stage_work(job: Job, index: int, stage: Stage) -> float:
    """Operations that quantizing a stage takes, up to a constant factor."""
    return solver_work(job, *stage_size(job.decoder.config, index, stage, job.grids))


def solver_work(job: Job, rows: int, channels: int) -> float:
    """Operations that quantizing layers of one input takes, up to a constant factor."""
    if job.settings.method == "gptq":
        return channels**3 / 3 + rows * channels**2
    return rows * channels


def search_work(job: Job, index: int, stage: Stage) -> int:
    """Operations that the search of a stage's channel scales takes, up to a constant factor."""
    rows, channels = stage_size(job.decoder.config, index, stage, job.grids)
    return rows * channels**2


def _search_scales(
    job: Job, index: int, block: DecoderBlock, statistics: Mapping[Stage, Any]
) -> tuple[float, float]:
    """Seconds of a unit of `search_work`, of the smallest stage that can be scaled, and of compiling."""
    scaled = [stage for stage in block.stages if stage in statistics and block.producer(stage)]
    if job.settings.channel_scales == "none" or not scaled:
        return 0.0, 0.0
    small = min(scaled, key=lambda stage: search_work(job, index, stage))
    preview, done = [(small, statistics[small])], FinishedBlock({}, [], {}, {})
    _, first, again = _twice(lambda: fold_scales(job, block.copied(), preview, done))
    return again / max(1, search_work(job, index, small)), max(0.0, first - again)


def _pass_text(
    calibration: TextCalibration, block: DecoderBlock
) -> tuple[Mapping[Stage, Any], tuple[float, float], float]:
    """Statistics of some sequences by stage; seconds per batch and per token of it; of compiling.

    Statistics of all stages are held at once, so half a batch at most runs, to take no more memory than the
    run.
    """
    found, first, one = _twice(lambda: calibration.trial(block.copied(), 1))
    length, compiling = calibration.sequence_length, max(0.0, first - one)
    count = min(calibration.trial_sequences // 2, int(SECONDS / one))
    if count < 2:
        return found, (0.0, one / length), compiling
    del found
    found, _, all_of_them = _twice(lambda: calibration.trial(block.copied(), count))
    rate = max(0.0, all_of_them - one) / (count - 1)
    return found, (max(0.0, one - rate), rate / length), compiling


def _pass_through(job: Job, block: DecoderBlock) -> tuple[float, float]:
    """Seconds per token, of a sequence as long as those of the proof, and of compiling."""
    shape = job.held_out[:1].shape
    hidden = job.decoder.embed(job.held_out[:1])
    _, first, again = _twice(lambda: to_host(block.forward(hidden)))
    return again / shape[1], max(0.0, first - again)


def _compare_scores(decoder: Decoder) -> tuple[float, float]:
    """Seconds per score, for the losses of both models and their divergence, and of compiling."""
    place, entries = decoder.place, min(VOCABULARY, decoder.config.vocab_size)
    rows = min(TRIED_ROWS, place.score_rows)
    scores = place.zeros((rows, entries))

    def compare() -> None:
        for _ in range(2):
            sums = LossSums(np.zeros((1, rows), np.int64), rows, scores)
            sums.add(0, 0, scores)
            sums.losses()
        state = divergence.new_state(rows, scores)
        divergence.add_scores(scores, scores, state)
        to_host(divergence.divergences(state))

    _, first, again = _twice(compare)
    return again / scores.size, max(0.0, first - again)


def _draw(decoder: Decoder) -> float:
    """Seconds of compiling what draws tokens."""
    scores = decoder.place.zeros((1, 1))

    def draw() -> None:
        state = sampling.new_state(1, scores)
        sampling.add_scores(scores, 0, 0, 0, state)
        sampling.drawn(state)

    _, first, again = _twice(draw)
    return max(0.0, first - again)


def _quantize_stages(
    job: Job, index: int, block: DecoderBlock, statistics: Mapping[Stage, Any]
) -> tuple[float, float, float, float]:
    """Seconds per stored weight, per stage, per unit of work in it, and of compiling."""
    works = {
        stage: stage_work(job, index, stage)
        for stage in sorted(block.stages, key=lambda stage: stage_work(job, index, stage))
        if any(f"{block.name}.{kind}" in job.grids for kind in stage)
    }

    def solve(stage: Stage) -> tuple[Any, float, float]:
        kinds = [kind for kind in stage if f"{block.name}.{kind}" in job.grids]
        grid = job.grids[f"{block.name}.{kinds[0]}"]
        # one batch may have too few tokens for the run's own damping
        settings = replace(on_grid(job.settings, grid), percdamp=1.0)
        inputs = dict.fromkeys(kinds, statistics.get(stage))
        return _twice(lambda: quantize_group(job, block, inputs, settings))

    if not works:  # only experts, which no stage here resembles
        return 0.0, 0.0, 0.0, 0.0
    small = next(iter(works))
    quantized, first, again = solve(small)
    rate = again / works[small]
    larger = [stage for stage, work in works.items() if work > 2 * works[small]]
    fitting = [stage for stage in larger if rate * works[stage] <= SECONDS]
    overhead = 0.0
    if fitting:
        _, _, slower = solve(fitting[-1])
        # noise may hide a short difference, so at least a tenth of the larger stage's time counts
        slower_by = max(slower - again, slower / 10)
        rate = slower_by / (works[fitting[-1]] - works[small])
        overhead = max(0.0, again - rate * works[small])
    packing, compiling = storing(quantized[0][0])
    return packing, overhead, rate, compiling + max(0.0, first - again)


def storing(weight: QuantizedWeight) -> tuple[float, float]:
    """Seconds to pack and unpack a code, and of compiling, including the host's other work on layers."""
    weight = weight.to_host()
    rows, channels = weight.codes.shape
    _, first, again = _twice(lambda: Distributions().add("", weight))
    compiling = max(0.0, first - again)
    _, first, again = _twice(
        lambda: unpack_bits(pack_bits(weight.codes, weight.bits), weight.bits, channels)
    )
    return again / (rows * channels), compiling + max(0.0, first - again)


def _twice(action: Callable[[], Any]) -> tuple[Any, float, float]:
    """Run `action` twice; return its result and the seconds of each run."""
    seconds = []
    for _ in range(2):
        result = None  # or both would be held
        begin = time.perf_counter()
        result = action()
        seconds.append(time.perf_counter() - begin)
    return result, seconds[0], seconds[1]
