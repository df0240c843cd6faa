"""The plan of a run: what it will write, hold and take, known before its first block.

Sizes are those of the output and of arrays, by the model's shapes. Times are those of a trial on this
machine: a few sequences of the text through the first block, and the layers of its smallest stage and of
its largest quantized; what comes first comes twice, since the first time may compile kernels. Running the
text takes time by the weights that its tokens meet, GPTQ by ``K^3 / 3 + M K^2`` of each stage, rounding by
``M K``, beside what any stage takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from numbacalib.formats.safetensors_writer import SHARD_BYTES
from numbacalib.models import DecoderBlock
from numbacalib.models.decoder import VOCABULARY
from numbacalib.models.layer_tensors import (
    Stage,
    expert_shapes,
    expert_stages,
    linear_shapes,
    stages,
)
from numbacalib.quantizer.blocks import quantize_group
from numbacalib.quantizer.calibration import SILENT, TextCalibration
from numbacalib.quantizer.job import Job, on_grid
from numbacalib.quantizer.memory import Demand, stage_size
from numbacalib.quantizer.outer import is_outer
from numbacalib.quantizer.preflight import in_units, resident_memory
from numbacalib.terminal import reporting, silent

MOVED = 5e8
"""Bytes a second at which an output is written and read back, once each."""
LATER = 100_000_000
"""Bytes of code that is loaded on the way, kernels above all, as measured."""
_BESIDE = 2.5
"""Times as long as one pass that the original model's beside it, with the moments of both, takes."""
_SCORES = 6
"""Float64 tiles of logits while two models are compared."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Plan of a run: what it is expected to take."""

    layers: int
    """That are quantized."""
    tokens: int
    """Of calibration; 0 where no text runs through the model."""
    bits_a_weight: float
    """Of the quantized layers, scales and zero points included."""
    output_bytes: int
    scratch_bytes: int
    """Of finished blocks, until the output is complete."""
    peak_bytes: int
    """Of the host's memory."""
    device_bytes: int
    """Of the device's memory; 0 on the host."""
    streamed_bytes: int = 0
    """Of hidden states in pinned memory of the host, from where they pass through the device; 0 where they
    stay there."""
    compile_seconds: float
    """Of kernels, which the trial has compiled."""
    seconds: dict[str, float]
    """By phase, as `RunReport.seconds` has them, of what is left to do."""

    def summary(self) -> str:
        """Return it in three lines."""
        device = f", {in_units(self.device_bytes)} on the device" if self.device_bytes else ""
        if self.streamed_bytes:
            device += f", {in_units(self.streamed_bytes)} of hidden states streamed to it"
        times = ", ".join(f"{name} {_minutes(own)}" for name, own in self.seconds.items())
        return (
            f"plan: {self.layers} layers at {self.bits_a_weight:.2f} bits a weight, "
            f"{self.tokens} tokens of calibration\n"
            f"plan: {in_units(self.output_bytes)} of output, {in_units(self.scratch_bytes)} of scratch, "
            f"{in_units(self.peak_bytes)} of memory{device}\n"
            f"plan: {_minutes(sum(self.seconds.values()))} to go: {times}"
        )


def make_plan(job: Job, *, output_bytes: int, scratch_bytes: int, finished: int) -> Plan:
    """Plan a run from its shapes and a trial.

    Parameters
    ----------
    job : Job
    output_bytes, scratch_bytes : int
        Of all that is to be written.
    finished : int
        Blocks that a killed run has finished.
    """
    names = {f"{name}.weight" for name in job.grids}
    copied = sum(map(job.checkpoint.stored_bytes, set(job.checkpoint.names()) - names))
    weights = sum(int(np.prod(info.shape)) for info in job.weights.values())
    with reporting(silent), np.errstate(**SILENT):
        trial = _trial(job)
    tokens = job.tokens
    blocks = job.decoder.config.num_layers
    passes = [trial.forward * _token_weights(job, index) for index in range(blocks)]
    running = _BESIDE if job.settings.target == "propagated" else 1.0
    seconds = {
        "quantizing": running * tokens * sum(passes[finished:])
        + sum(_solving(job, index, trial) for index in range(finished, blocks))
        + sum(trial.work * _work(job, *shape) for shape in _outer_shapes(job)),
        "writing": output_bytes / MOVED,
        # both models run over it
        "proving": output_bytes / MOVED + 2 * job.held_out.size * sum(passes),
    }
    on_device = job.decoder.place.name != "cpu"
    streamed = on_device and _is_streamed(job)
    demand = demand_of(job)
    return Plan(
        layers=len(job.grids),
        tokens=tokens,
        bits_a_weight=8 * (output_bytes - copied) / weights,
        output_bytes=output_bytes,
        scratch_bytes=scratch_bytes,
        peak_bytes=resident_memory() + _host_bytes(job, tokens, output_bytes),
        device_bytes=demand.working_bytes(tokens, streamed=streamed) if on_device else 0,
        streamed_bytes=demand.pinned_bytes(tokens) if streamed else 0,
        compile_seconds=trial.compiling,
        seconds=seconds,
    )


def require_memory(job: Job, plan: Plan) -> None:
    """Check that what a run will hold fits into the memory that is free where it runs.

    Raises
    ------
    MemoryError
        If it does not; one line with both numbers and what would fit.
    """
    place = job.decoder.place
    free = place.free_bytes()

    def needed(tokens: int) -> int:
        if plan.device_bytes:
            return demand_of(job).least_bytes(tokens)
        return _host_bytes(job, tokens, plan.output_bytes)

    if free is None or needed(job.tokens) <= free:
        return
    raise MemoryError(
        f"{place.name}: expected {in_units(needed(job.tokens))} of free memory for the run, found "
        f"{in_units(free)}: {_remedy(job, lambda tokens: needed(tokens) <= free)}"
    )


def out_of_memory(job: Job, plan: Plan, error: MemoryError) -> MemoryError:
    """Return the error of a run that found less memory than its plan, once what it had is free again."""
    demand, place = demand_of(job), job.decoder.place
    place.give_back()
    free = place.free_bytes() or 0
    planned = plan.device_bytes or plan.peak_bytes
    # what was too little for the plan is so for all that takes as much
    most = min(free, 3 * planned // 4)
    remedy = _remedy(job, lambda tokens: demand.least_bytes(tokens) <= most)
    return MemoryError(
        f"{error}: the plan was {in_units(planned)}, {in_units(free)} are free without it: {remedy}"
    )


def _remedy(job: Job, fits: Callable[[int], bool]) -> str:
    """Name an option with which a run would fit into memory."""
    samples = job.settings.samples // 2 if job.tokens else 0
    while samples and not fits(samples * job.settings.sequence_length):
        samples //= 2
    return f"--samples {samples} would fit" if samples else "no option would fit"


def demand_of(job: Job) -> Demand:
    """Return what decides how much memory a run takes."""
    calibrated = job.calibration is not None
    return Demand.of(job.decoder, job.settings, job.grids.keys(), calibrated=calibrated)


def _is_streamed(job: Job) -> bool:
    return isinstance(job.calibration, TextCalibration) and job.calibration.streamed


class _Trial(NamedTuple):
    """Seconds that parts of a run take."""

    forward: float
    """A token through a weight."""
    stage: float
    """Of a stage, whatever its size."""
    work: float
    """Of a unit of `_stage_work`."""
    compiling: float
    """Of kernels, which are there now."""


def _trial(job: Job) -> _Trial:
    """Measure on the first block that is quantized."""
    # the first with a layer not skipped
    index = min(int(name.split(".")[2]) for name in job.grids if not is_outer(name))
    block = job.decoder.block(index)
    found: Mapping[Any, Any] = {}
    first = again = 0.0
    tokens = 0
    calibration = job.calibration
    if isinstance(calibration, TextCalibration):
        tokens = calibration.trial_tokens
        found, first = _timed(lambda: calibration.trial(block.copied()))
        found, again = _timed(lambda: calibration.trial(block.copied()))
    elif calibration is not None:
        found = dict(calibration.preview(index, block))
    ordered = sorted(
        (stage for stage in block.stages if any(_name(block, kind) in job.grids for kind in stage)),
        key=lambda stage: _stage_work(job, index, stage),
    )
    small, large = ordered[0], ordered[-1]
    solve_first = _solve(job, block, small, found.get(small))
    solve_again = _solve(job, block, small, found.get(small))
    works = [_stage_work(job, index, stage) for stage in (small, large)]
    overhead, rate = 0.0, solve_again / works[0]
    if works[1] > 2 * works[0]:
        slower = _solve(job, block, large, found.get(large))
        rate = max(0.0, slower - solve_again) / (works[1] - works[0])
        overhead = max(0.0, solve_again - rate * works[0])
    return _Trial(
        again / (tokens * _token_weights(job, index)) if tokens else 0.0,
        overhead,
        rate,
        max(0.0, first - again) + max(0.0, solve_first - solve_again),
    )


def _solve(job: Job, block: DecoderBlock, stage: Stage, statistics: Any) -> float:
    """Seconds of quantizing the layers of a stage."""
    kinds = [kind for kind in stage if _name(block, kind) in job.grids]
    grid = job.grids[_name(block, kinds[0])]
    # one batch has no second stream, and maybe too few tokens for the run's own damping
    settings = replace(on_grid(job.settings, grid), target="layerwise", percdamp=1.0)
    inputs = dict.fromkeys(kinds, statistics)
    return _timed(lambda: quantize_group(job, block, inputs, settings))[1]


def _timed(action: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = action()
    return result, time.perf_counter() - begin


def _name(block: DecoderBlock, kind: str) -> str:
    return f"{block.name}.{kind}"


def _token_weights(job: Job, index: int) -> float:
    """Weights of a block that a token meets, those of the experts that are chosen for it among them."""
    config = job.decoder.config
    mixture = config.mixture_of(index)
    experts = sum(rows * channels for rows, channels in expert_shapes(config, index).values())
    chosen = 0.0 if mixture is None else experts * mixture.routing.experts / mixture.experts
    return chosen + sum(rows * channels for rows, channels in linear_shapes(config, index).values())


def _solving(job: Job, index: int, trial: _Trial) -> float:
    """Seconds of quantizing a block's layers; its experts are equal."""
    config = job.decoder.config
    experts = expert_stages(config, index)
    found = 0.0
    for stage, count in [
        *((stage, 1) for stage in stages(config, index)),
        *((stage, len(experts)) for stage in (experts[0] if experts else ())),
    ]:
        found += count * (trial.stage + trial.work * _stage_work(job, index, stage))
    return found


def _stage_work(job: Job, index: int, stage: tuple[str, ...]) -> float:
    return _work(job, *stage_size(job.decoder.config, index, stage, job.grids))


def _outer_shapes(job: Job) -> list[tuple[int, ...]]:
    """M and K of the layers outside of the blocks that are quantized."""
    return [info.shape for name, info in job.weights.items() if is_outer(name)]


def _work(job: Job, rows: int, channels: int) -> float:
    if job.settings.method == "gptq":
        return channels**3 / 3 + rows * channels**2
    return rows * channels


def _host_bytes(job: Job, tokens: int, output_bytes: int) -> int:
    """Bytes of the host's memory that a run on so many tokens takes beside what it holds already."""
    place = job.decoder.place
    largest = max(map(job.checkpoint.stored_bytes, job.checkpoint.names()))
    writing = min(output_bytes, SHARD_BYTES) + largest
    scores = min(job.held_out.size, place.score_rows) * VOCABULARY
    proving = 2 * largest + 8 * _SCORES * scores
    demand = demand_of(job)
    quantizing = demand.working_bytes(tokens) if place.name == "cpu" else 0
    if _is_streamed(job):
        quantizing += demand.pinned_bytes(tokens)
    return LATER + max(quantizing, writing, proving)


def _minutes(seconds: float) -> str:
    seconds = round(seconds)
    return f"{seconds} s" if seconds < 100 else f"{seconds // 60}:{seconds % 60:02d} min"
