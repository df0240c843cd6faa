"""The plan of a run: what it will write, hold and take, known before its first block.

Sizes are those of the output and of arrays, by the model's shapes. Times are those of `Trial`: running the
text takes time by the weights that its tokens meet, GPTQ by ``K^3 / 3 + M K^2`` of each stage, rounding by
``M K``, beside what any stage takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from numbacalib.formats.safetensors_writer import SHARD_BYTES
from numbacalib.models import HOST, Place
from numbacalib.models.decoder import VOCABULARY
from numbacalib.models.layer_tensors import expert_stages, linear_shapes, stages
from numbacalib.quantizer.blocks import Job
from numbacalib.quantizer.preflight import in_units, resident_memory
from numbacalib.quantizer.trial import Trial, stage_size, stage_work, token_weights, try_out

MOVED = 5e8
"""Bytes a second at which an output is written and read back, once each."""
LATER = 100_000_000
"""Bytes of code that is loaded on the way, kernels above all, as measured."""
_SCORES = 6
"""Float64 tiles of logits while two models are compared."""
_COPIES = 4
"""Float32 copies of a stage's weights: as read, compensated, as codes, dequantized."""
_SQUARES = 4
"""Matrices [K, K] beside a stage's: its Hessian, damped and factored, couplings, one more for a search."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Plan of a run: what it is expected to take."""

    layers: int
    """That are quantized."""
    widths: dict[int, int]
    """Layers by their bits."""
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
    block_seconds: list[float]
    """Of each block that is left to do."""

    def summary(self) -> str:
        """Return it in three lines."""
        widths = [f"{count} of {bits} bits" for bits, count in sorted(self.widths.items())]
        compiled = f"; kernels compiled in {_minutes(self.compile_seconds)}"
        device = f", {in_units(self.device_bytes)} on the device" if self.device_bytes else ""
        times = ", ".join(f"{name} {_minutes(own)}" for name, own in self.seconds.items())
        return (
            f"plan: {self.layers} layers, {' and '.join(widths)}, {self.bits_a_weight:.2f} bits a weight "
            f"in all; {self.tokens} tokens of calibration\n"
            f"plan: {in_units(self.output_bytes)} of output, {in_units(self.scratch_bytes)} of scratch, "
            f"{in_units(self.peak_bytes)} of memory{device}\n"
            f"plan: {_minutes(sum(self.seconds.values()))} to go: {times}"
            f"{compiled if self.compile_seconds >= 1 else ''}"
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
    trial = try_out(job)
    tokens = job.tokens
    blocks = job.decoder.config.num_layers
    met = [token_weights(job, index) for index in range(blocks)]
    each = [
        tokens * trial.calibrating * met[index] + _solving(job, index, trial)
        for index in range(finished, blocks)
    ]
    config = job.decoder.config
    head = config.vocab_size * config.hidden_size
    # both models run, and each has its scores twice: for its loss, and to be compared
    proof = trial.forward * (2 * sum(met) + 4 * head) + trial.score * config.vocab_size
    seconds = {
        "quantizing": sum(each),
        "writing": output_bytes / MOVED,
        "proving": output_bytes / MOVED + job.held_out.size * proof,
    }
    place = job.decoder.place
    return Plan(
        layers=len(job.grids),
        widths=dict(Counter(grid.bits for grid in job.grids.values())),
        tokens=tokens,
        bits_a_weight=8 * (output_bytes - copied) / weights,
        output_bytes=output_bytes,
        scratch_bytes=scratch_bytes,
        peak_bytes=resident_memory() + _host_bytes(job, place, output_bytes),
        device_bytes=0 if place is HOST else _working_bytes(job, place),
        compile_seconds=trial.compiling,
        seconds=seconds,
        block_seconds=each,
    )


def require_memory(job: Job, plan: Plan) -> None:
    """Check that what a run will hold fits into the memory that is free where it runs.

    Raises
    ------
    MemoryError
        If it does not; one line with both numbers and what would fit.
    """
    lacking = _lacking(job, job.decoder.place, plan.output_bytes)
    if lacking is None:
        return
    fitting = (
        option
        for option, other, place in _smaller(job)
        if _lacking(other, place, plan.output_bytes) is None
    )
    where, needed, free = lacking
    raise MemoryError(
        f"{where}: expected {in_units(needed)} of free memory for the run, found {in_units(free)}: "
        f"{next(fitting, 'no option')} would fit"
    )


def _lacking(job: Job, place: Place, output_bytes: int) -> tuple[str, int, int] | None:
    """Name a place that has too little memory for a run, with the bytes that it needs and those free."""
    needs = {HOST: _host_bytes(job, place, output_bytes)}
    if place is not HOST:
        needs[place] = _working_bytes(job, place)
    for where, needed in needs.items():
        free = where.free_bytes()
        if free is not None and needed > free:
            return where.name, needed, free
    return None


def _smaller(job: Job) -> Iterator[tuple[str, Job, Place]]:
    """Runs that take less memory: the option that makes them, what they do, and where."""
    place = job.decoder.place
    if job.settings.target == "propagated":
        yield (
            "--target layerwise",
            replace(job, settings=replace(job.settings, target="layerwise")),
            place,
        )
    samples = job.settings.samples // 2 if job.tokens else 0
    while samples:
        tokens = samples * job.settings.sequence_length
        yield f"--samples {samples}", replace(job, tokens=tokens), place
        samples //= 2
    if place is not HOST:
        yield "--device cpu", job, HOST


def _solving(job: Job, index: int, trial: Trial) -> float:
    """Seconds of quantizing a block's layers; its experts are equal."""
    config = job.decoder.config
    experts = expert_stages(config, index)
    found = 0.0
    for stage, count in [
        *((stage, 1) for stage in stages(config, index)),
        *((stage, len(experts)) for stage in (experts[0] if experts else ())),
    ]:
        found += count * (trial.stage + trial.work * stage_work(job, index, stage))
    return found


def _host_bytes(job: Job, place: Place, output_bytes: int) -> int:
    """Bytes of the host's memory that a run takes beside what it holds already."""
    largest = max(map(job.checkpoint.stored_bytes, job.checkpoint.names()))
    writing = min(output_bytes, SHARD_BYTES) + largest
    scores = min(job.held_out.size, place.score_rows) * VOCABULARY
    proving = 2 * largest + 8 * _SCORES * scores
    quantizing = _working_bytes(job, place) if place is HOST else 0
    return LATER + max(quantizing, writing, proving)


def _working_bytes(job: Job, place: Place) -> int:
    """Bytes of arrays while the largest block is quantized."""
    return max(_block_bytes(job, index, place) for index in range(job.decoder.config.num_layers))


def _block_bytes(job: Job, index: int, place: Place) -> int:
    config, tokens = job.decoder.config, job.tokens
    shapes = linear_shapes(config, index).values()
    streams = 2 if job.settings.target == "propagated" else 1
    weights = streams * sum(rows * channels for rows, channels in shapes)
    widest = max(channels for _, channels in shapes)
    batch = 3 * min(tokens, place.batch_tokens) * widest
    held = streams * tokens * widest if 4 * tokens * widest <= place.held_bytes else 0
    hidden = streams * tokens * config.hidden_size if place is not HOST else 0
    squares = _SQUARES + 2 * (streams - 1) if job.calibration is not None else 0
    sizes = [stage_size(job, index, stage) for stage in stages(config, index)]
    solving = max(squares * channels**2 + _COPIES * rows * channels for rows, channels in sizes)
    return 4 * (weights + batch + held + hidden + solving)


def _minutes(seconds: float) -> str:
    seconds = round(seconds)
    return f"{seconds} s" if seconds < 100 else f"{seconds // 60}:{seconds % 60:02d} min"
