"""Perplexity of whole models, one decoder block in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.dequantized import dequantized
from numbacalib.models import Decoder, open_checkpoint, open_place
from numbacalib.quantizer.progress import Progress
from numbacalib.quantizer.text import read_sequences
from numbacalib.runtime.finite import require_finite
from numbacalib.runtime.not_finite import NotFiniteError

SWEEP_TOKENS = 65536
"""Tokens whose states an evaluation holds at a time."""

_LARGEST = math.log(np.finfo(np.float64).max)


class Evaluation(NamedTuple):
    """Next-token prediction over a text."""

    loss: float
    """Mean negative log likelihood, nats a token."""
    tokens: int
    """Tokens predicted."""

    @property
    def perplexity(self) -> float:
        """``exp(loss)``; infinity where that is beyond float64."""
        return math.exp(self.loss) if self.loss < _LARGEST else math.inf


def evaluate(
    model: str | Path,
    text: Sequence[str | Path],
    *,
    sequence_length: int = 512,
    samples: int | None = None,
    device: str = "auto",
) -> Evaluation:
    """Perplexity of a model, quantized or not, on a text cut into sequences of one length.

    Every token but the first of its sequence is predicted from those before it in the sequence.

    Parameters
    ----------
    model : path
        A Hugging Face directory, plain or in one of `numbacalib.formats.FORMATS`, or a GGUF file.
    text : sequence of paths
        UTF-8 text files.
    sequence_length : int, default 512
    samples : int, optional
        Sequences to take, evenly spaced over the text; all by default.
    device : str, default "auto"
        Where the model runs: see `numbacalib.models.open_place`.

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError, TypeError, OSError
        If an input does not fit.
    FloatingPointError
        If the embeddings, a block or the head give a NaN or an infinity: the first that does so.

    Examples
    --------
    >>> from numbacalib.quantizer import evaluate
    >>> result = evaluate("model", ["text.txt"], sequence_length=32, samples=2)
    >>> result.tokens, round(result.perplexity, -2)
    (62, 600.0)
    """
    checkpoint = dequantized(open_checkpoint(model))
    decoder = Decoder(checkpoint, place=open_place(device))
    tokens = read_sequences(checkpoint, text, sequence_length, samples)
    sweeps = np.array_split(tokens, -(-tokens.size // SWEEP_TOKENS))
    total = 0.0
    # What overflows is reported, by name and once.
    with Progress(len(sweeps) * decoder.config.num_layers) as progress, np.errstate(all="ignore"):
        for sweep in sweeps:
            try:
                total += _sweep(model, decoder, sweep, progress)
                checkpoint.check_unchanged()
            except NotFiniteError as error:  # of the tensors read, too
                raise FloatingPointError(str(error)) from None
    predicted = tokens.size - len(tokens)
    return Evaluation(total / predicted, predicted)


def _sweep(
    model: str | Path, decoder: Decoder, tokens: NDArray[np.integer], progress: Progress
) -> float:
    """Sum of the losses over sequences that fit into memory together."""
    hidden = decoder.embed(tokens)
    require_finite(f"{model}: the embeddings", hidden)
    for index in range(decoder.config.num_layers):
        progress.show(f"evaluating block {index + 1} of {decoder.config.num_layers}")
        block = decoder.block(index)
        for part in decoder.batches(hidden):
            block.forward(part)
            require_finite(f"{model}: {block.name}", part)
        progress.step()
    losses = decoder.token_losses(hidden, tokens)
    require_finite(f"{model}: the final norm and head", losses)
    return float(losses.sum(dtype=np.float64))
