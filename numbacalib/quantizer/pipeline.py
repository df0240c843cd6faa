"""Quantizer of whole models, one decoder block in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import numbacalib
from numbacalib.formats.format import Format, ModelWriter
from numbacalib.formats.output_directory import (
    new_directory,
    require_new_directory,
    work_directory,
)
from numbacalib.formats.registry import formats_named
from numbacalib.methods import LayerReport
from numbacalib.models import HOST, open_checkpoint, open_place
from numbacalib.models.hub import revision_of
from numbacalib.quantizer.ahead import CompiledAhead
from numbacalib.quantizer.blocks import quantize_blocks
from numbacalib.quantizer.calibration import TextCalibration
from numbacalib.quantizer.distributions import Distributions
from numbacalib.quantizer.job import Inputs, Job, asked_grid, open_job
from numbacalib.quantizer.plan import OWN_TEXT, Plan, make_plan, out_of_memory, require_memory
from numbacalib.quantizer.preflight import peak_memory, require_space
from numbacalib.quantizer.proof import prove
from numbacalib.quantizer.report import Clock, RunReport, recorded_warnings
from numbacalib.quantizer.settings import Settings, check
from numbacalib.quantizer.work import Work, kept_bytes, open_work
from numbacalib.terminal import Callback, reporting


def quantize(
    model: str | Path,
    output: str | Path,
    *,
    text: Sequence[str | Path] = (),
    statistics: str | Path | None = None,
    importance: str | Path | None = None,
    settings: Settings | None = None,
    formats: Sequence[str] = ("compressed-tensors",),
    device: str = "auto",
    held_out: Sequence[str | Path] = (),
    max_kl: float | None = None,
    clean: bool = False,
    work: str | Path | None = None,
    planned: Callable[[Plan], object] | None = None,
    progress: Callback | None = None,
    **options: Any,
) -> RunReport:
    """Quantize the linear layers of a model's decoder blocks and write a loadable checkpoint.

    GPTQ runs block by block and layer by layer, on activations from the layers already quantized; layers
    that share an input share its Hessian. Embeddings, norms, biases and the head are copied unchanged by
    default. `output` appears when it is complete.

    Parameters
    ----------
    model : path
        A Hugging Face directory or a GGUF file.
    output : path
        Absent, or an empty directory.
    text : sequence of paths
        Calibration text, UTF-8; round-to-nearest needs none.
    statistics : path, optional
        Directory of `numbacalib.quantizer.collect`, instead of a text.
    importance : path, optional
        File for `numbacalib.quantizer.read_importance`, which the ranges "weighted" use instead of the mean
        squares of the text.
    settings : Settings, optional
        Or its attributes by name: ``quantize(model, output, text=[file], bits=3)``.
    formats : sequence of str, default ("compressed-tensors",)
        Names of `numbacalib.formats.FORMATS`. Several must have a grid in common; each gets a directory of
        its name in `output`.
    device : str, default "auto"
        Where the model runs and its layers are quantized: see `numbacalib.models.open_place`.
    held_out : sequence of paths
        Text to evaluate the output on before it appears. By default a few sequences of the calibration text
        that are not calibrated on.
    max_kl : float, optional
        Largest mean KL divergence, in nats per token, of the output's predictions from the model's on that
        text; the run fails above it.
    clean : bool, default False
        Start over, and remove the finished blocks of a killed run.
    work : path, optional
        A directory to keep finished blocks in until the output is complete; a hidden one beside the output
        by default. A killed run resumes from it when it is started again.
    planned : callable, optional
        Called with the `Plan` before the first block.
    progress : callable, optional
        Called with the current activity, the steps done and the total steps, instead of a bar on standard
        error.
    **options
        Attributes of `Settings`, instead of `settings`.

    Returns
    -------
    RunReport

    Raises
    ------
    ValueError, TypeError, OSError
        If an input does not fit, there is no room for the output, or the finished blocks of a killed run
        are of other inputs or settings; nothing has been written then.
    OSError
        If writing fails later. A checkpoint that was complete is kept, and the message names it.
    ModuleNotFoundError
        If a package of the extra `models` is missing.
    numbacalib.quantizer.ProofError
        If the output read back is not as expected, or exceeds `max_kl`. It is kept beside `output`, by a
        name that says so.
    numpy.linalg.LinAlgError
        If a layer's damped Hessian is not positive definite, or too many layers needed more damping.

    Examples
    --------
    >>> from numbacalib.quantizer import quantize
    >>> options = {"bits": 4, "group_size": 32, "samples": 2, "sequence_length": 32}
    >>> report = quantize("model", "quantized", text=["text.txt"], **options)
    >>> layer = report.layers[0]
    >>> layer.name, layer.tokens, layer.loss < layer.rtn_loss
    ('model.layers.0.self_attn.q_proj', 64, True)
    """
    settings = _settings(settings, options)
    check(settings, importance)
    written = formats_named(formats)
    for each in written:
        each.check_own_grid(settings.grid_options)
        each.check(asked_grid(settings, np.dtype(np.float32)))
    require_new_directory(Path(os.path.realpath(output)))
    clock = Clock()
    with recorded_warnings() as warnings, reporting(progress), ExitStack() as beside:
        with clock.phase("reading"):
            inputs = Inputs(model, text, held_out, statistics, importance)
            checkpoint = open_checkpoint(model)
            experts = checkpoint.config.mixture is not None
            settings = settings.settled(text=bool(text), experts=experts)
            ahead = beside.enter_context(CompiledAhead(checkpoint, settings, device))
            place = open_place(device)
            ahead.begin(place)
            job = open_job(checkpoint, inputs, settings, written, place)
        if max_kl is not None and not len(job.held_out):
            raise ValueError("max_kl: expected a held-out text, or more text than is calibrated on")
        kept_in = work_directory(output) if work is None else Path(work)
        with (
            open_work(kept_in, job.identity, clean=clean) as kept,
            new_directory(output, clean=True) as directory,  # finished blocks are in `kept`
        ):
            paths = [directory / each.name if written[1:] else directory for each in written]
            writers = _writers(job, kept, paths, written)
            with clock.phase("planning"):
                plan = _plan(job, kept, writers)
            if planned is not None:
                planned(plan)
            if OWN_TEXT in plan.seconds:
                with clock.phase(OWN_TEXT):
                    _within_memory(job, plan, partial(_write_own_text, job))
            with ExitStack() as stack:
                for writer in writers:
                    stack.enter_context(writer)
                with clock.phase("quantizing"):
                    later = plan.seconds["writing"] + plan.seconds["proving"]
                    blocks = partial(quantize_blocks, job, kept, plan.block_seconds, later)
                    _within_memory(job, plan, blocks)
                HOST.give_back()
                with clock.phase("writing"):
                    layers, counted = _write_layers(job, kept, writers)
                    stack.close()
            HOST.give_back()
            with clock.phase("proving"):
                proofs = [
                    prove(job.checkpoint, kept, each, path, job.held_out, place, max_kl)
                    for each, path in zip(written, paths, strict=True)
                ]
    return RunReport(
        version=numbacalib.__version__,
        model=str(model),
        revision=revision_of(job.checkpoint.path),
        output=str(output),
        device=place.name,
        formats=[each.name for each in written],
        settings=job.identity["settings"],
        inputs=inputs.reported(),
        layers=layers,
        original_bytes=job.checkpoint.file_bytes(),
        output_bytes=writers[0].planned_bytes,
        resumed_blocks=kept.finished,
        seconds=clock.seconds,
        begins=clock.begins,
        peak_bytes=peak_memory(),
        device_bytes=place.taken_bytes(),
        weights=counted.weights,
        scales=counted.scales,
        plan=plan,
        proofs=proofs,
        warnings=warnings,
    )


def _writers(
    job: Job, kept: Work, paths: Sequence[Path], formats: Sequence[Format]
) -> list[ModelWriter]:
    """Return the writers of the output, after checking the room for it and for the kept blocks."""
    for path in paths:
        path.mkdir(exist_ok=True)  # one for each of several formats
    writers = [
        each.writer(path, job.checkpoint, job.grids)
        for each, path in zip(formats, paths, strict=True)
    ]
    blocks = job.decoder.config.num_layers
    left = kept_bytes(job.weights, job.grids) * max(0, blocks - kept.finished) // blocks
    output = paths[0].parent if paths[1:] else paths[0]
    planned = {output: sum(writer.planned_bytes for writer in writers), kept.directory: left}
    require_space(planned, ("--output", "--work"))
    return writers


def _write_own_text(job: Job) -> None:
    """Calibrate on the text with the sequences that the model writes."""
    own = job.own
    assert own is not None
    assert isinstance(job.calibration, TextCalibration)
    job.calibration.restart(lambda: own.added(job.decoder))


def _within_memory(job: Job, plan: Plan, action: Callable[[], None]) -> None:
    """Call a part of a run; its MemoryError is raised only after its memory is free again."""
    try:
        action()
        return
    except MemoryError as found:
        error = found.with_traceback(None)  # the frames hold arrays
    raise out_of_memory(job, plan, error)


def _plan(job: Job, kept: Work, writers: Sequence[ModelWriter]) -> Plan:
    """Return the plan of a run that fits into memory."""
    plan = make_plan(
        job,
        output_bytes=sum(writer.planned_bytes for writer in writers),
        formats=len(writers),
        scratch_bytes=kept_bytes(job.weights, job.grids),
        finished=kept.finished,
    )
    require_memory(job, plan)
    return plan


def _write_layers(
    job: Job, kept: Work, writers: Sequence[ModelWriter]
) -> tuple[list[LayerReport], Distributions]:
    """Pass all kept blocks to the writers.

    Returns the layers' reports, with their stored bytes, and the distributions of weights and scales.
    """
    reports, counted = [], Distributions()
    for block in kept.blocks():
        for name, vector in block.vectors.items():
            for writer in writers:
                writer.add(name, vector)
        for report in block.reports:
            stored = [
                writer.add_layer(report.name, block.layers[report.name]) for writer in writers
            ]
            counted.add(report.name, block.layers[report.name])
            reports.append(replace(report, stored_bytes=stored[0]))
    return reports, counted


def _settings(settings: Settings | None, options: Mapping[str, Any]) -> Settings:
    """Return the settings, given as a whole or by name."""
    if settings is None:
        return Settings(**options)
    if options:
        raise TypeError(f"settings: expected them or {min(options)}, got both")
    return settings
