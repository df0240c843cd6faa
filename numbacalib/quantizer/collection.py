"""Statistics of a text's pass through a model, saved for several quantizations."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.durable import write_whole
from numbacalib.formats.imatrix import write_imatrix
from numbacalib.formats.output_directory import (
    new_directory,
    require_new_directory,
    work_directory,
)
from numbacalib.models import EMBEDDINGS, Checkpoint, Decoder, open_checkpoint, open_place
from numbacalib.ops.matrix import to_host
from numbacalib.quantizer.calibration import SILENT
from numbacalib.quantizer.fingerprint import hash_tensors, write_fingerprint
from numbacalib.quantizer.identity import identity_of
from numbacalib.quantizer.memory import Demand
from numbacalib.quantizer.own_text import own_sequences, own_text_of
from numbacalib.quantizer.preflight import require_space, statistics_bytes
from numbacalib.quantizer.progress import Progress
from numbacalib.quantizer.settings import OWN_TEXT, Settings, check_sequences
from numbacalib.quantizer.stages import run_stages
from numbacalib.quantizer.text import read_sequences
from numbacalib.quantizer.work import Work, block_file, open_work
from numbacalib.runtime import checks
from numbacalib.runtime.extras import extra
from numbacalib.statistics import InputStatistics, load_statistics, save_statistics

IMATRIX = "imatrix.gguf"
"""Name of the importance file beside the statistics."""


def collect(
    model: str | Path,
    output: str | Path,
    *,
    text: Sequence[str | Path],
    samples: int = 64,
    sequence_length: int = 512,
    own_text: float | None = None,
    device: str = "auto",
    clean: bool = False,
) -> None:
    """Run a text through a model and save the statistics of all its linear layers' inputs.

    Finished blocks are kept beside the output: a killed run resumes from them when it is started again.

    Parameters
    ----------
    model : path
        A Hugging Face directory or a GGUF file.
    output : path
        Absent, or an empty directory: one file a decoder block, `IMATRIX` for
        ``llama-quantize --imatrix``, and a fingerprint of the model. It appears when it is complete.
    text, samples, sequence_length, own_text, device, clean
        As in `numbacalib.quantizer.quantize`.

    Raises
    ------
    ValueError, TypeError, OSError
        If an input does not fit, there is no room for the output, or the finished blocks of a killed run
        are of other inputs; nothing has been written then.
    ModuleNotFoundError
        If a package of the extra `models` is missing.

    Examples
    --------
    >>> from numbacalib.quantizer import Settings, collect, quantize
    >>> collect("model", "collected", text=["text.txt"], samples=2, sequence_length=32)
    >>> for bits in (4, 3):
    ...     settings = Settings(bits=bits, group_size=32)
    ...     _ = quantize("model", f"model-{bits}bit", statistics="collected", settings=settings)
    """
    with extra("models"):  # a missing package is an error now, not after the last block
        import gguf  # noqa: F401
        import safetensors  # noqa: F401

    check_sequences(samples, sequence_length)
    own_text = OWN_TEXT if own_text is None else own_text
    checks.share("own_text", own_text)
    require_new_directory(Path(os.path.realpath(output)))
    place = open_place(device)
    checkpoint = open_checkpoint(model)
    if checkpoint.config.mixture is not None:
        raise ValueError(
            f"{model}: expected a model without experts, since statistics of the tokens routed to each "
            "expert are not saved: give quantize the text"
        )
    decoder = Decoder(checkpoint, place=place)
    count = own_sequences(own_text, samples)
    tokens = read_sequences(checkpoint, text, sequence_length, samples - count)
    demand = Demand.of(decoder, Settings(target="layerwise"), ())
    tokens = own_text_of(tokens, count, demand).added(decoder)
    identity = identity_of(checkpoint, place, tokens, output="statistics")
    with (
        open_work(work_directory(output), identity, clean=clean) as kept,
        new_directory(output, clean=True) as directory,  # finished blocks are in `kept`
    ):
        layers = checkpoint.config.num_layers
        left = statistics_bytes(checkpoint) * (layers - kept.finished) // layers
        require_space({kept.directory: left})
        squares, hashes = _collect_blocks(checkpoint, decoder, tokens, kept)
        write_imatrix(
            directory / IMATRIX,
            squares,
            datasets=[Path(file).name for file in text],
            chunk_size=sequence_length,
            config=checkpoint.config,
        )
        write_fingerprint(directory, checkpoint, hashes)
        for index in reversed(range(layers)):  # an interruption leaves no gap in the kept blocks
            file = block_file(kept.directory, index)
            file.replace(directory / file.name)


class _Squares(NamedTuple):
    """Squared inputs of a layer for an importance file, once its Hessian is on disk."""

    tokens: int
    mean_square: NDArray[np.float32]


def _collect_blocks(
    checkpoint: Checkpoint, decoder: Decoder, tokens: NDArray[np.integer], kept: Work
) -> tuple[dict[str, _Squares], dict[str, dict[str, Any]]]:
    """Keep the statistics of all blocks; return squared inputs by layer, and hashes of the tensors read."""
    layers = decoder.config.num_layers
    squares = {}
    with Progress(layers, done=kept.finished, unit="block") as progress, np.errstate(**SILENT):
        hidden = decoder.states(tokens)
        hashes = hash_tensors(checkpoint, [EMBEDDINGS])
        for index in range(layers):
            progress.show(f"block {index + 1} of {layers}")
            block = decoder.block(index)
            hashes |= hash_tensors(checkpoint, decoder.block_tensors(index))
            checkpoint.check_unchanged()
            found: Mapping[str, InputStatistics]
            if index < kept.finished:
                found = load_statistics(block_file(kept.directory, index))
                block.forward_parts(hidden)
            else:
                found = {
                    f"{block.name}.{kind}": statistics
                    for stage, statistics in run_stages(block, decoder, hidden)
                    for kind in stage
                }
                write_whole(
                    block_file(kept.directory, index),
                    partial(save_statistics, statistics=found),
                )
                progress.step(f"block {index + 1} of {layers}")
            for name, inputs in found.items():
                squares[name] = _Squares(inputs.tokens, to_host(inputs.mean_square))
    return squares, hashes
