"""Perplexity of whole models, one decoder block in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.dequantized import dequantized
from numbacalib.models import Checkpoint, Decoder, Place, open_checkpoint, open_place
from numbacalib.quantizer.divergence import compare
from numbacalib.quantizer.progress import Progress
from numbacalib.quantizer.text import read_sequences
from numbacalib.runtime.finite import require_finite
from numbacalib.runtime.not_finite import NotFiniteError

SWEEP_TOKENS = 65536
"""Tokens whose states an evaluation holds at a time."""

_LARGEST = math.log(np.finfo(np.float64).max)


@dataclass(frozen=True)
class Evaluation:
    """Next-token prediction over a text, in nats per token."""

    loss: float
    """Mean negative log likelihood."""
    tokens: int
    """Tokens predicted."""
    loss_error: float | None = None
    """Standard error of the loss over the sequences; None for one sequence."""
    kl: float | None = None
    """Mean KL divergence of the predictions from another model's; None without one."""
    kl_error: float | None = None
    """Standard error of `kl` over the sequences."""
    original_loss: float | None = None
    """The other model's loss."""
    excess_error: float | None = None
    """Standard error of ``loss - original_loss`` over the sequences, which are the same for both."""

    @property
    def perplexity(self) -> float:
        """``exp(loss)``; infinity if it overflows float64."""
        return math.exp(self.loss) if self.loss < _LARGEST else math.inf


def evaluate(
    model: str | Path,
    text: Sequence[str | Path],
    *,
    sequence_length: int = 512,
    samples: int | None = None,
    device: str = "auto",
    against: str | Path | None = None,
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
    against : path, optional
        Another model of the same vocabulary, such as the original, for the divergence from it.

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError, TypeError, OSError
        If an input does not fit.
    FloatingPointError
        If the embeddings, a block or the head give a NaN or an infinity; it names the first.

    Examples
    --------
    >>> from numbacalib.quantizer import evaluate
    >>> result = evaluate("model", ["text.txt"], sequence_length=32, samples=2)
    >>> result.tokens, round(result.perplexity, -2)
    (62, 600.0)
    """
    place = open_place(device)
    subjects = [
        Subject.opened(path, place) for path in ([model] if against is None else [model, against])
    ]
    tokens = read_sequences(subjects[0].checkpoint, text, sequence_length, samples)
    return measure(tokens, *subjects)


class Subject(NamedTuple):
    """A model that is measured."""

    name: str
    checkpoint: Checkpoint
    decoder: Decoder

    @classmethod
    def opened(cls, path: str | Path, place: Place) -> Subject:
        """Open a checkpoint, quantized or not.

        Raises
        ------
        ValueError, OSError
            As `numbacalib.models.open_checkpoint`.
        """
        checkpoint = dequantized(open_checkpoint(path))
        return cls(str(path), checkpoint, Decoder(checkpoint, place=place))


def measure(
    tokens: NDArray[np.integer], subject: Subject, original: Subject | None = None
) -> Evaluation:
    """Evaluate a model on tokens [S, T], and against an `original` if given.

    Raises
    ------
    ValueError
        If their vocabularies differ.
    FloatingPointError
        As `evaluate`.
    """
    (found,) = measure_texts([tokens], subject, original)
    return found


def measure_texts(
    texts: Sequence[NDArray[np.integer]], subject: Subject, original: Subject | None = None
) -> list[Evaluation]:
    """Evaluate a model as `measure` does, on several texts [S, T] of one T in one pass through it."""
    subjects = [subject] if original is None else [subject, original]
    sizes = [each.decoder.config.vocab_size for each in subjects]
    if sizes[0] != sizes[-1]:
        raise ValueError(
            f"{subjects[-1].name}: expected the {sizes[0]} tokens of {subject.name}, got {sizes[-1]}"
        )
    tokens = np.concatenate(texts)
    sweeps = np.array_split(tokens, -(-tokens.size // SWEEP_TOKENS))
    blocks = sum(each.decoder.config.num_layers for each in subjects)
    sums = []
    # Overflows are reported below, by name and once.
    with Progress(len(sweeps) * blocks) as progress, np.errstate(all="ignore"):
        for sweep in sweeps:
            try:
                sums.append(_sweep(subjects, sweep, progress))
                for each in subjects:
                    each.checkpoint.check_unchanged()
            except NotFiniteError as error:  # also of tensors as they are read
                raise FloatingPointError(str(error)) from None
    predicted = tokens.shape[1] - 1
    ends = np.cumsum([len(text) for text in texts])[:-1]
    runs = np.split(np.concatenate(sums, axis=1) / predicted, ends, axis=1)
    return [_evaluation(run, predicted) for run in runs]


def _evaluation(figures: NDArray[np.float64], predicted: int) -> Evaluation:
    """Evaluate a text from the means over the predictions of each sequence, [1 or 3, S]."""
    others: dict[str, float | None] = {}
    if len(figures) > 1:
        own, its, kl = figures
        others = {
            "original_loss": float(its.mean()),
            "excess_error": _standard_error(own - its),
            "kl": float(kl.mean()),
            "kl_error": _standard_error(kl),
        }
    loss, sequences = figures[0], figures.shape[1]
    return Evaluation(float(loss.mean()), predicted * sequences, _standard_error(loss), **others)


def _standard_error(sequences: NDArray[np.float64]) -> float | None:
    """Standard error of a mean over sequences; None for one."""
    if len(sequences) < 2:
        return None
    return float(sequences.std(ddof=1) / math.sqrt(len(sequences)))


def _sweep(
    subjects: Sequence[Subject], tokens: NDArray[np.integer], progress: Progress
) -> NDArray[np.float64]:
    """Sums over each sequence, float64 [n, S]: each model's losses, and the KL of two models."""
    states = [_states(each, tokens, progress) for each in subjects]
    own = subjects[0].decoder
    if len(subjects) > 1:
        found = compare(subjects[1].decoder, states[1], own, states[0], tokens)
    else:
        found = (own.token_losses(states[0], tokens),)
    for each, losses in zip(subjects, found, strict=False):  # the divergences are left over
        require_finite(f"{each.name}: the final norm and head", losses)
    return np.stack([each.sum(axis=1, dtype=np.float64) for each in found])


def _states(subject: Subject, tokens: NDArray[np.integer], progress: Progress) -> Any:
    """States after the last block, of sequences that fit into memory together."""
    decoder = subject.decoder
    hidden = decoder.embed(tokens)
    require_finite(f"{subject.name}: the embeddings", hidden)
    for index in range(decoder.config.num_layers):
        progress.show(f"evaluating block {index + 1} of {decoder.config.num_layers}")
        block = decoder.block(index)
        for part in decoder.batches(hidden):
            block.forward(part)
            require_finite(f"{subject.name}: {block.name}", part)
        progress.step()
    return hidden
