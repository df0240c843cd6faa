"""The quantizer of whole models, one decoder block in memory at a time."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from numbacalib.formats.format import Format, LayerGrid, ModelWriter
from numbacalib.formats.group_lengths import listed
from numbacalib.formats.output_directory import (
    new_directory,
    require_new_directory,
    work_directory,
)
from numbacalib.formats.registry import common_grids, formats_named, stored_format
from numbacalib.methods import (
    LayerReport,
)
from numbacalib.models import (
    Checkpoint,
    Decoder,
    Place,
    open_checkpoint,
    open_place,
)
from numbacalib.models.layer_tensors import stages
from numbacalib.quantizer.blocks import Job, on_grid, quantize_blocks
from numbacalib.quantizer.calibration import (
    Calibration,
    SavedCalibration,
    TextCalibration,
)
from numbacalib.quantizer.identity import identity_of, stamps_of
from numbacalib.quantizer.importance import read_importance
from numbacalib.quantizer.preflight import require_space
from numbacalib.quantizer.settings import Settings, check
from numbacalib.quantizer.text import read_sequences
from numbacalib.quantizer.work import Work, kept_bytes, open_work

log = logging.getLogger("numbacalib")


def quantize(
    model: str | Path,
    output: str | Path,
    *,
    text: Sequence[str | Path] = (),
    statistics: str | Path | None = None,
    importance: str | Path | None = None,
    settings: Settings,
    formats: Sequence[str] = ("compressed-tensors",),
    device: str = "auto",
    clean: bool = False,
    work: str | Path | None = None,
) -> list[LayerReport]:
    """Quantize the linear layers of a model's decoder blocks and write a loadable checkpoint.

    GPTQ runs block by block and layer by layer on the activations that the layers quantized before
    produce; layers that share an input share its Hessian. Embeddings, norms, biases and the head are
    copied as they are. `output` appears when it is complete.

    Parameters
    ----------
    model : path
        A Hugging Face directory or a GGUF file.
    output : path
        Absent, or an empty directory.
    text : sequence of paths
        Calibration text, UTF-8; round-to-nearest needs none.
    statistics : path, optional
        What `numbacalib.quantizer.collect` left, instead of a text.
    importance : path, optional
        What `numbacalib.quantizer.read_importance` reads, for the ranges "weighted" instead of the
        mean squares of the text.
    settings : Settings
    formats : sequence of str, default ("compressed-tensors",)
        Names of `numbacalib.formats.FORMATS`. Of several, which must have a grid in common, each gets a
        directory of its name in `output`.
    device : str, default "auto"
        Where the model runs and its layers are quantized: see `numbacalib.models.open_place`.
    clean : bool, default False
        Begin anew where a killed run left finished blocks.
    work : path, optional
        A directory to keep finished blocks in until the output is complete; a hidden one beside the output
        by default. A run that was killed goes on from there when it is started again.

    Returns
    -------
    list of LayerReport
        In the order in which the layers ran.

    Raises
    ------
    ValueError, TypeError, OSError
        If an input does not fit, there is no room for the output, or the finished blocks of a killed run
        are of other inputs or settings; nothing has been written then.
    OSError
        If the disk refuses later. Where the checkpoint was complete, it is kept, and the message names it.
    ModuleNotFoundError
        If a package of the extra `models` is missing.
    numpy.linalg.LinAlgError
        If a layer's damped Hessian is not positive definite, or too many were not at first.

    Examples
    --------
    >>> from numbacalib.quantizer import Settings, quantize
    >>> settings = Settings(bits=4, group_size=32, samples=2, sequence_length=32)
    >>> reports = quantize("model", "quantized", text=["text.txt"], settings=settings)
    >>> reports[0].name, reports[0].tokens, reports[0].loss < reports[0].rtn_loss
    ('model.layers.0.self_attn.q_proj', 64, True)
    """
    check(settings, importance)
    written = formats_named(formats)
    for each in written:
        each.check(_asked(settings, np.dtype(np.float32)))
    require_new_directory(Path(os.path.realpath(output)))
    job = _open_job(model, text, statistics, importance, settings, written, open_place(device))
    kept_in = work_directory(output) if work is None else Path(work)
    with (
        open_work(kept_in, job.identity, anew=clean) as kept,
        new_directory(output, clean=True) as directory,  # what is worth anything is in the work
    ):
        directories = [directory / each.name if written[1:] else directory for each in written]
        writers = [
            each.writer(path, job.checkpoint, job.grids)
            for each, path in zip(written, directories, strict=True)
        ]
        total = sum(writer.planned_bytes for writer in writers)
        require_space({directory: total, kept.directory: kept_bytes(job.weights, job.grids)})
        with ExitStack() as stack:
            for writer in writers:
                stack.enter_context(writer)
            quantize_blocks(job, kept)
            return _write_layers(job, kept, writers)


def _open_job(
    model: str | Path,
    text: Sequence[str | Path],
    statistics: str | Path | None,
    importance: str | Path | None,
    settings: Settings,
    formats: Sequence[Format],
    place: Place,
) -> Job:
    """Read all that a run starts from but the blocks, and check that it goes together."""
    checkpoint = open_checkpoint(model)
    if stored_format(checkpoint) is not None:
        raise ValueError(f"{model}: expected an unquantized checkpoint, got a quantized one")
    decoder = Decoder(checkpoint, place=place)
    shapes = _layer_shapes(checkpoint)
    grids = _grids(checkpoint, settings, formats)
    factors = None
    if importance is not None:
        factors = read_importance(importance, shapes)
    calibration: Calibration | None = None
    tokens = None
    if statistics is not None:
        if text:
            raise ValueError("text: expected none where statistics are given")
        if settings.target == "propagated":
            raise ValueError(
                "target: expected layerwise with statistics, since only a run over a text has the "
                "quantized layers' inputs beside the original ones"
            )
        calibration = SavedCalibration(statistics, checkpoint, decoder)
    elif settings.calibrated(importance is not None) or settings.channel_scales != "none":
        tokens = read_sequences(checkpoint, text, settings.sequence_length, settings.samples)
        calibration = TextCalibration(decoder, tokens, settings.target == "propagated")
    identity = identity_of(checkpoint, settings, formats, place, tokens)
    identity |= stamps_of(statistics=statistics, importance=importance)
    weights = {name: checkpoint.info(f"{name}.weight") for name in shapes}
    return Job(checkpoint, decoder, settings, weights, grids, calibration, factors, identity)


def _write_layers(job: Job, kept: Work, writers: Sequence[ModelWriter]) -> list[LayerReport]:
    """Hand all blocks that are kept to the writers; return their reports, with what the layers take."""
    reports = []
    for index in range(job.decoder.config.num_layers):
        block = kept.load(index)
        for name, vector in block.vectors.items():
            for writer in writers:
                writer.add(name, vector)
        for report in block.reports:
            stored = [
                writer.add_layer(report.name, block.layers[report.name]) for writer in writers
            ]
            reports.append(replace(report, stored_bytes=stored[0]))
    return reports


def _grids(
    checkpoint: Checkpoint, settings: Settings, formats: Sequence[Format]
) -> dict[str, LayerGrid]:
    """Say how the model's linear layers are to be stored, and in the log what deviates."""
    weights = {name: checkpoint.info(f"{name}.weight") for name in _layer_shapes(checkpoint)}
    asked = {name: _asked(settings, info.dtype) for name, info in weights.items()}
    grids = common_grids(formats, weights, asked)
    for grid in dict.fromkeys(grids.values()):
        on_grid(settings, grid).check()
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


def _asked(settings: Settings, dtype: np.dtype) -> LayerGrid:
    """Return the grid of a layer with weights of `dtype`, before a format says how it is stored."""
    unordered = settings.method == "gptq" and settings.act_order == "desc"
    return LayerGrid(
        settings.bits,
        settings.group_size,
        settings.symmetric,
        dtype,
        g_idx=unordered and not settings.static_groups,
    )


def _layer_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """M and K of the linear layers that are quantized, by name without ``.weight``."""
    shapes = {}
    for index in range(checkpoint.config.num_layers):
        for kind in (kind for stage in stages(checkpoint.config, index) for kind in stage):
            rows, channels = checkpoint.info(f"model.layers.{index}.{kind}.weight").shape
            shapes[f"model.layers.{index}.{kind}"] = rows, channels
    return shapes
