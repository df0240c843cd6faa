"""Perplexity of whole models, one decoder block in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from numbacalib.formats.compressed_tensors import is_compressed, weight_reader
from numbacalib.models import Decoder, open_checkpoint
from numbacalib.quantizer.calibration import batches
from numbacalib.quantizer.progress import Progress
from numbacalib.quantizer.text import read_sequences

SWEEP_TOKENS = 65536
"""Tokens whose states an evaluation holds at a time."""


class Evaluation(NamedTuple):
    """Next-token prediction over a text."""

    loss: float
    """Mean negative log likelihood, nats a token."""
    tokens: int
    """Tokens predicted."""

    @property
    def perplexity(self) -> float:
        """``exp(loss)``."""
        return math.exp(self.loss)


def evaluate(
    model: str | Path,
    text: Sequence[str | Path],
    *,
    sequence_length: int = 512,
    samples: int | None = None,
) -> Evaluation:
    """Perplexity of a model, quantized or not, on a text cut into sequences of one length.

    Every token but the first of its sequence is predicted from those before it in the sequence.

    Parameters
    ----------
    model : path
        A Hugging Face directory (plain or compressed-tensors `pack-quantized`) or a GGUF file.
    text : sequence of paths
        UTF-8 text files.
    sequence_length : int, default 512
    samples : int, optional
        Sequences to take, evenly spaced over the text; all by default.
    """
    checkpoint = open_checkpoint(model)
    compressed = is_compressed(checkpoint.hf_config())
    decoder = Decoder(checkpoint, weight_reader(checkpoint) if compressed else None)
    tokens = read_sequences(checkpoint, text, sequence_length, samples)
    sweeps = np.array_split(tokens, -(-tokens.size // SWEEP_TOKENS))
    total = 0.0
    with Progress(len(sweeps) * decoder.config.num_layers) as progress:
        for sweep in sweeps:
            hidden = decoder.embed(sweep)
            for index in range(decoder.config.num_layers):
                progress.show(f"evaluating block {index + 1} of {decoder.config.num_layers}")
                block = decoder.block(index)
                for part in batches(hidden):
                    part[...] = block.forward(part)
                progress.step()
            total += float(decoder.token_losses(hidden, sweep).sum(dtype=np.float64))
    predicted = tokens.size - len(tokens)
    return Evaluation(total / predicted, predicted)
