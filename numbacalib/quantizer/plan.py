"""Plan of a run: its output, memory and time, estimated before its first block.

Sizes of the output and of arrays follow from the model's shapes. Times are extrapolated from `Trial`:
running the text by the weights that its tokens meet, GPTQ by ``K^3 / 3 + M K^2`` of each stage, rounding by
``M K``, with a constant per stage.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from numbacalib.formats.safetensors_writer import SHARD_BYTES
from numbacalib.models import HOST
from numbacalib.models.decoder import VOCABULARY
from numbacalib.models.layer_tensors import expert_stages, stages
from numbacalib.quantizer.calibration import TextCalibration
from numbacalib.quantizer.job import Job
from numbacalib.quantizer.memory import Demand
from numbacalib.quantizer.outer import is_outer
from numbacalib.quantizer.own_text import OwnText
from numbacalib.quantizer.preflight import in_units, resident_memory
from numbacalib.quantizer.settings import PAIRED_TOKENS
from numbacalib.quantizer.trial import (
    Trial,
    block_weights,
    search_work,
    solver_work,
    stage_work,
    token_weights,
    try_out,
)

OWN_TEXT = "own text"
"""Phase in which the model writes text."""
MOVED = 1e9
"""Bytes per second at which an output is written and read back, once each."""
_ALONE = 0.4
"""Time of a token in one model, as a share of its time in both with the moments of both."""
LATER = 30_000_000
"""Bytes of code that is loaded after the trial, and of memory that is not freed, as measured."""
_LONG = 1.0
"""Seconds of compilation that leave much to the garbage collector."""
_TILES = 4
"""Tiles of logits held while two models are compared: two of each, as one is computed."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Plan of a run: its expected sizes and times."""

    layers: int
    """Number of quantized layers."""
    widths: dict[int, int]
    """Number of layers by bits."""
    tokens: int
    """Of calibration; 0 if no text runs through the model."""
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
    """Of hidden states in pinned host memory, streamed through the device; 0 if they stay on the device."""
    compile_seconds: float
    """Of kernels, already spent in the trial."""
    seconds: dict[str, float]
    """Of the remaining work by phase, named as in `RunReport.seconds`."""
    block_seconds: list[float]
    """Of each remaining block."""

    def summary(self) -> str:
        """Return it in three lines."""
        widths = [f"{count} of {bits} bits" for bits, count in sorted(self.widths.items())]
        compiled = f"; kernels compiled in {_minutes(self.compile_seconds)}"
        device = f", {in_units(self.device_bytes)} on the device" if self.device_bytes else ""
        if self.streamed_bytes:
            device += f", {in_units(self.streamed_bytes)} of hidden states streamed to it"
        times = ", ".join(f"{name} {_minutes(own)}" for name, own in self.seconds.items())
        return (
            f"plan: {self.layers} layers, {' and '.join(widths)}, {self.bits_a_weight:.2f} bits a weight "
            f"in all; {self.tokens} tokens of calibration\n"
            f"plan: {in_units(self.output_bytes)} of output, {in_units(self.scratch_bytes)} of scratch, "
            f"{in_units(self.peak_bytes)} of memory{device}\n"
            f"plan: {_minutes(sum(self.seconds.values()))} to go: {times}"
            f"{compiled if self.compile_seconds >= 1 else ''}"
        )


def make_plan(
    job: Job, *, output_bytes: int, formats: int, scratch_bytes: int, finished: int
) -> Plan:
    """Plan a run from its shapes and a trial.

    Parameters
    ----------
    job : Job
    output_bytes, scratch_bytes : int
        Of all that is to be written.
    formats : int
        Formats that the output is written in.
    finished : int
        Blocks that a killed run has finished.
    """
    names = {f"{name}.weight" for name in job.grids}
    copied = sum(map(job.checkpoint.stored_bytes, set(job.checkpoint.names()) - names))
    weights = sum(int(np.prod(info.shape)) for info in job.weights.values())
    trial, demand = try_out(job), demand_of(job)
    if trial.compiling > _LONG:
        gc.collect()  # compilation leaves cycles of frames, which may hold the trial's arrays
    HOST.give_back()
    tokens = job.tokens
    blocks = job.decoder.config.num_layers
    met = [token_weights(job, index) for index in range(blocks)]
    passed = _passed(job, tokens)
    batches = -(-passed // demand.place.batch_tokens) * trial.batch
    each = []
    for index in range(finished, blocks):
        passing = batches + passed * trial.calibrating * met[index]
        if job.settings.channel_scales != "none":  # the text passes once more, without the original
            passing += passing / demand.streams + _scaling(job, index, trial)
        reading = trial.reading * block_weights(job, index)
        each.append(passing + _solving(job, index, trial) + reading)
    outer = [info.shape for name, info in job.weights.items() if is_outer(name)]
    if outer and finished <= blocks:  # they are kept as one more block
        each.append(sum(trial.work * solver_work(job, *shape) for shape in outer))
    config = job.decoder.config
    head = config.vocab_size * config.hidden_size
    # both models run
    read = 2 * (sum(block_weights(job, index) for index in range(blocks)) + head)
    proof = trial.forward * 2 * (sum(met) + head) + trial.score * config.vocab_size
    seconds = {
        "quantizing": sum(each),
        "writing": output_bytes / MOVED + weights * trial.storing,
        # unpacked as kept, as written, and to run
        "proving": output_bytes / MOVED
        + 3 * weights * trial.storing
        + (read * trial.reading if job.held_out.size else 0.0)
        + job.held_out.size * proof,
    }
    if each and job.own is not None and job.own.count:
        seconds = {OWN_TEXT: _writing(job, job.own, trial)} | seconds
    streamed = _is_streamed(job)
    return Plan(
        layers=len(job.grids),
        widths=dict(Counter(grid.bits for grid in job.grids.values())),
        tokens=tokens,
        bits_a_weight=8 * (output_bytes / formats - copied) / weights,
        output_bytes=output_bytes,
        scratch_bytes=scratch_bytes,
        peak_bytes=resident_memory() + _host_bytes(job, demand, tokens, output_bytes),
        device_bytes=0 if demand.on_host else demand.working_bytes(tokens, streamed=streamed),
        streamed_bytes=demand.pinned_bytes(tokens) if streamed else 0,
        compile_seconds=trial.compiling,
        seconds=seconds,
        block_seconds=each,
    )


def _writing(job: Job, own: OwnText, trial: Trial) -> float:
    """Seconds that the model takes to write its own text; a draw takes about the time of a score."""
    config = job.decoder.config
    blocks = range(config.num_layers)
    work = own.work(job.decoder)
    products = work.passed * sum(token_weights(job, index) for index in blocks)
    products += work.drawn * config.vocab_size * config.hidden_size
    read = work.read * sum(block_weights(job, index) for index in blocks) / len(blocks)
    return (
        products * (trial.forward or trial.calibrating)
        + work.drawn * config.vocab_size * trial.score
        + read * trial.reading
    )


def _passed(job: Job, tokens: int) -> int:
    """Tokens that take the same time if all pass both models, as the trial's do."""
    if job.settings.target != "propagated":
        return tokens
    paired = min(tokens, PAIRED_TOKENS)
    return round(paired + _ALONE * (tokens - paired))


def require_memory(job: Job, plan: Plan) -> None:
    """Check that a run fits into the free memory of host and device.

    Raises
    ------
    MemoryError
        If it does not; one line with both numbers and an option that would fit.
    """

    def lacking(demand: Demand, tokens: int) -> tuple[str, int, int] | None:
        return _lacking(job, demand, tokens, plan.output_bytes)

    found = lacking(demand_of(job), job.tokens)
    if found is None:
        return
    where, needed, free = found
    raise MemoryError(
        f"{where}: expected {in_units(needed)} of free memory for the run, found {in_units(free)}: "
        f"{_remedy(job, lambda demand, tokens: lacking(demand, tokens) is None)}"
    )


def out_of_memory(job: Job, plan: Plan, error: MemoryError) -> MemoryError:
    """Return the error of a run that ran out of memory despite its plan, after freeing its own."""
    place = job.decoder.place
    place.give_back()
    free = place.free_bytes() or 0
    planned = plan.device_bytes or plan.peak_bytes
    # the plan did not fit, so a smaller run must take clearly less
    most = min(free, 3 * planned // 4)

    def fits(demand: Demand, tokens: int) -> bool:
        if demand.place is place:
            return demand.least_bytes(tokens) <= most
        return _lacking(job, demand, tokens, plan.output_bytes) is None

    return MemoryError(
        f"{error}: the plan was {in_units(planned)}, {in_units(free)} are free without it: "
        f"{_remedy(job, fits)}"
    )


def demand_of(job: Job) -> Demand:
    """Return the memory demand of a run."""
    calibrated = job.calibration is not None
    return Demand.of(job.decoder, job.settings, job.grids.keys(), calibrated=calibrated)


def _is_streamed(job: Job) -> bool:
    return isinstance(job.calibration, TextCalibration) and job.calibration.streamed


def _lacking(
    job: Job, demand: Demand, tokens: int, output_bytes: int
) -> tuple[str, int, int] | None:
    """Return a place with too little memory for a run, with the bytes needed and free; None if none."""
    needs = {HOST: _host_bytes(job, demand, tokens, output_bytes)}
    if not demand.on_host:
        needs[demand.place] = demand.least_bytes(tokens)
    for where, needed in needs.items():
        # the memory that a run already holds on a device is part of its demand there
        free = where.free_bytes() if where is HOST else job.free_bytes
        if free is not None and needed > free:
            return where.name, needed, free
    return None


def _remedy(job: Job, fits: Callable[[Demand, int], bool]) -> str:
    """Name an option with which a run would fit into memory."""
    options = (option for option, smaller in _smaller(job) if fits(*smaller))
    return f"{next(options, 'no option')} would fit"


def _smaller(job: Job) -> Iterator[tuple[str, tuple[Demand, int]]]:
    """Runs that take less memory: the option for each, with its demand and tokens."""
    demand = demand_of(job)
    if job.settings.target == "propagated":
        settings = replace(job.settings, target="layerwise")
        yield "--target layerwise", (replace(demand, settings=settings), job.tokens)
    samples = job.settings.samples // 2 if job.tokens else 0
    while samples:
        yield f"--samples {samples}", (demand, samples * job.settings.sequence_length)
        samples //= 2
    if not demand.on_host:
        yield "--device cpu", (replace(demand, place=HOST), job.tokens)


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


def _scaling(job: Job, index: int, trial: Trial) -> float:
    """Seconds of searching a block's channel scales, counted for all stages."""
    found = stages(job.decoder.config, index)
    return trial.scaling * sum(search_work(job, index, stage) for stage in found)


def _host_bytes(job: Job, demand: Demand, tokens: int, output_bytes: int) -> int:
    """Bytes of host memory that a run on this many tokens takes beyond its current memory."""
    largest = max(map(job.checkpoint.stored_bytes, job.checkpoint.names()))
    writing = min(output_bytes, SHARD_BYTES) + largest
    entries = min(VOCABULARY, job.decoder.config.vocab_size)
    scores = min(job.held_out.size, demand.place.score_rows) * entries
    proving = 2 * largest + 4 * _TILES * scores
    blocks = range(job.decoder.config.num_layers)
    # codes of a block, and of the one before it, which is written meanwhile
    quantizing = 2 * max(block_weights(job, index) for index in blocks)
    if demand.on_host:  # which already holds the states of the text
        quantizing += demand.working_bytes(tokens) - demand.pinned_bytes(job.tokens)
    if _is_streamed(job):
        quantizing += demand.pinned_bytes(tokens)
    return LATER + max(quantizing, writing, proving)


def _minutes(seconds: float) -> str:
    seconds = round(seconds)
    return f"{seconds} s" if seconds < 100 else f"{seconds // 60}:{seconds % 60:02d} min"
