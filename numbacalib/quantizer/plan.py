"""The plan of a run: what it will write, hold and take, known before its first block.

Sizes are those of the output and of arrays, by the model's shapes. Times are those of a trial on this
machine: a few sequences of the text through the first block, and the layers of one of its stages
quantized, each twice, since the first time may compile kernels. Running the text takes time by the
weights that its tokens meet, GPTQ by ``K^3 / 3 + M K^2`` of its stages, rounding by ``M K``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from numbacalib.formats.safetensors_writer import SHARD_BYTES
from numbacalib.models import DecoderBlock
from numbacalib.models.layer_tensors import expert_shapes, expert_stages, linear_shapes, stages
from numbacalib.quantizer.blocks import Job, on_grid, quantize_group
from numbacalib.quantizer.calibration import SILENT, TextCalibration
from numbacalib.quantizer.preflight import in_units
from numbacalib.terminal import reporting, silent

MOVED = 5e8
"""Bytes a second at which an output is written and read back, once each."""
_COPIES = 4
"""Float32 copies of a stage's weights: as read, compensated, as codes, dequantized."""
_SQUARES = 4
"""Matrices [K, K] beside a stage's: its Hessian, damped and factored, couplings, one more for a search."""


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
    compile_seconds: float
    """Of kernels, which the trial has compiled."""
    seconds: dict[str, float]
    """By phase, as `RunReport.seconds` has them, of what is left to do."""

    def summary(self) -> str:
        """Return it in three lines."""
        device = f", {in_units(self.device_bytes)} on the device" if self.device_bytes else ""
        times = ", ".join(f"{name} {_minutes(own)}" for name, own in self.seconds.items())
        return (
            f"plan: {self.layers} layers at {self.bits_a_weight:.2f} bits a weight, "
            f"{self.tokens} tokens of calibration\n"
            f"plan: {in_units(self.output_bytes)} of output, {in_units(self.scratch_bytes)} of scratch, "
            f"{in_units(self.peak_bytes)} of memory{device}\n"
            f"plan: {_minutes(sum(self.seconds.values()))} to go: {times}"
        )


def make_plan(
    job: Job, *, output_bytes: int, scratch_bytes: int, finished: int, resident_bytes: int
) -> Plan:
    """Plan a run from its shapes and a trial.

    Parameters
    ----------
    job : Job
    output_bytes, scratch_bytes : int
        Of all that is to be written.
    finished : int
        Blocks that a killed run has finished.
    resident_bytes : int
        Memory that the process holds already, with the text's hidden states.
    """
    names = {f"{name}.weight" for name in job.grids}
    copied = sum(map(job.checkpoint.stored_bytes, set(job.checkpoint.names()) - names))
    weights = sum(int(np.prod(info.shape)) for info in job.weights.values())
    with reporting(silent), np.errstate(**SILENT):
        forward, solving, compiled = _trial(job)
    tokens = job.tokens
    blocks = job.decoder.config.num_layers
    passes = [forward * _token_weights(job, index) for index in range(blocks)]
    seconds = {
        "quantizing": tokens * sum(passes[finished:])
        + solving * sum(_work(job, index) for index in range(finished, blocks)),
        "writing": output_bytes / MOVED,
        # both models run over it
        "proving": output_bytes / MOVED + 2 * job.held_out.size * sum(passes),
    }
    on_device = job.decoder.place.name != "cpu"
    working = max(_working_bytes(job, index, tokens) for index in range(blocks))
    copying = min(output_bytes, SHARD_BYTES) + max(
        map(job.checkpoint.stored_bytes, job.checkpoint.names())
    )
    return Plan(
        layers=len(job.grids),
        tokens=tokens,
        bits_a_weight=8 * (output_bytes - copied) / weights,
        output_bytes=output_bytes,
        scratch_bytes=scratch_bytes,
        peak_bytes=resident_bytes + max(0 if on_device else working, copying),
        device_bytes=working + 4 * tokens * job.decoder.config.hidden_size if on_device else 0,
        compile_seconds=compiled,
        seconds=seconds,
    )


def require_memory(job: Job, plan: Plan, resident_bytes: int) -> None:
    """Check that what a run will hold fits into the memory that is free where it runs.

    Raises
    ------
    MemoryError
        If it does not; one line with both numbers and what would fit.
    """
    place = job.decoder.place
    free = place.free_bytes()
    needed = plan.device_bytes or plan.peak_bytes - resident_bytes
    if free is None or needed <= free:
        return
    blocks = range(job.decoder.config.num_layers)
    samples = job.settings.samples // 2
    while samples and job.tokens:
        tokens = samples * job.settings.sequence_length
        if max(_working_bytes(job, index, tokens) for index in blocks) <= free:
            break
        samples //= 2
    remedy = f"--samples {samples} would fit" if samples and job.tokens else "no option would fit"
    raise MemoryError(
        f"{place.name}: expected {in_units(needed)} of free memory for the run, found {in_units(free)}: "
        f"{remedy}"
    )


def _trial(job: Job) -> tuple[float, float, float]:
    """Seconds a token and weight, seconds a unit of `_work`, and seconds that went to compiling."""
    index = min(int(name.split(".")[2]) for name in job.grids)  # the first with a layer not skipped
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
    stage = min(
        (stage for stage in block.stages if any(_name(block, kind) in job.grids for kind in stage)),
        key=lambda stage: _stage_work(job, index, stage),
    )
    kinds = [kind for kind in stage if _name(block, kind) in job.grids]
    grid = job.grids[_name(block, kinds[0])]
    # the trial has no second stream, and its target would take no more time
    settings = replace(on_grid(job.settings, grid), target="layerwise")
    inputs = dict.fromkeys(kinds, found.get(stage))

    def solve() -> object:
        return quantize_group(job, block, inputs, settings)

    _, solve_first = _timed(solve)
    _, solve_again = _timed(solve)
    forward = again / (tokens * _token_weights(job, index)) if tokens else 0.0
    compiled = max(0.0, first - again) + max(0.0, solve_first - solve_again)
    return forward, solve_again / _stage_work(job, index, stage), compiled


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


def _work(job: Job, index: int) -> float:
    """Work of quantizing a block; its experts are equal."""
    config = job.decoder.config
    experts = expert_stages(config, index)
    one = sum(_stage_work(job, index, stage) for stage in experts[0]) if experts else 0
    own = sum(_stage_work(job, index, stage) for stage in stages(config, index))
    return own + one * len(experts)


def _stage_work(job: Job, index: int, stage: tuple[str, ...]) -> float:
    rows, channels = _size(job, index, stage)
    if job.settings.method == "gptq":
        return channels**3 / 3 + rows * channels**2
    return rows * channels


def _size(job: Job, index: int, stage: tuple[str, ...]) -> tuple[int, int]:
    """Rows of all layers of a stage that are quantized, and their channels."""
    config = job.decoder.config
    shapes = linear_shapes(config, index) | expert_shapes(config, index)
    own = [
        shapes[f"{kind}.weight"] for kind in stage if f"model.layers.{index}.{kind}" in job.grids
    ]
    return sum(rows for rows, _ in own), shapes[f"{stage[0]}.weight"][1]


def _working_bytes(job: Job, index: int, tokens: int) -> int:
    """Bytes of arrays while a block is quantized on so many tokens, beside the hidden states."""
    place, config = job.decoder.place, job.decoder.config
    shapes = linear_shapes(config, index).values()
    streams = 2 if job.settings.target == "propagated" else 1
    whole = 4 * streams * sum(rows * channels for rows, channels in shapes)
    widest = max(channels for _, channels in shapes)
    batch = 4 * min(tokens, place.batch_tokens) * 3 * widest
    held = 4 * tokens * widest
    held = held * streams if held <= place.held_bytes else 0
    solving = 0
    for stage in stages(config, index):
        rows, channels = _size(job, index, stage)
        squares = _SQUARES + 2 * (streams - 1) if job.calibration is not None else 0
        solving = max(solving, 4 * (squares * channels**2 + _COPIES * rows * channels))
    return whole + batch + held + solving + _expert_bytes(job, index, tokens)


def _expert_bytes(job: Job, index: int, tokens: int) -> int:
    """Bytes of a block's experts: some at work, codes of all, and inputs and sums of all tokens."""
    config = job.decoder.config
    codes = sum(rows * channels for rows, channels in expert_shapes(config, index).values())
    if not codes:
        return 0
    return job.decoder.place.held_bytes + codes + 2 * 4 * tokens * config.hidden_size


def _minutes(seconds: float) -> str:
    seconds = round(seconds)
    return f"{seconds} s" if seconds < 100 else f"{seconds // 60}:{seconds % 60:02d} min"
