"""Text files as token sequences of one length, read and tokenized in pieces."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from numbacalib.models import Checkpoint
from numbacalib.models.text_encoder import TextEncoder
from numbacalib.quantizer.documents import BLOCK, file_size, read_documents
from numbacalib.quantizer.progress import Progress

log = logging.getLogger("numbacalib")


def read_sequences(
    checkpoint: Checkpoint, files: Sequence[str | Path], length: int, samples: int | None = None
) -> NDArray[np.int32]:
    """Tokenize text files and cut them into sequences, int32 [S, length]: all, or `samples`, evenly spaced.

    See `read_all_sequences` for the other parameters and errors.
    """
    sequences = read_all_sequences(checkpoint, files, length, samples)
    return sequences if samples is None else sequences[evenly_spaced(len(sequences), samples)]


def read_split(
    checkpoint: Checkpoint, files: Sequence[str | Path], length: int, samples: int, held_out: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the result of `read_sequences`, and up to `held_out` of the remaining sequences.

    See `read_all_sequences` for the other parameters and errors.
    """
    sequences = read_all_sequences(checkpoint, files, length, samples)
    taken = evenly_spaced(len(sequences), samples)
    others = np.setdiff1d(np.arange(len(sequences)), taken)
    others = others[evenly_spaced(len(others), min(held_out, len(others)))]
    return sequences[taken], sequences[others]


def read_all_sequences(
    checkpoint: Checkpoint, files: Sequence[str | Path], length: int, samples: int | None = None
) -> NDArray[np.int32]:
    r"""Tokenize text files and cut them into sequences, int32 [S, length].

    Each file is tokenized as one text; their tokens are joined and cut without overlap, and what is
    left at the end is dropped. The special tokens that the tokenizer puts before a text are put before
    every sequence, as part of its length. Those that it puts after a text are left out: no sequence
    ends where a text does.

    `numbacalib.quantizer.documents` lists the file types.

    Parameters
    ----------
    checkpoint : Checkpoint
        Whose tokenizer is used. Sequences longer than its ``max_position_embeddings`` cause a warning.
    files : sequence of paths
    length : int
        Tokens of a sequence, at least 2.
    samples : int, optional
        Least number of sequences.

    Raises
    ------
    ValueError
        If a file is not a regular file of text or of its kind, the tokenizer refuses it or gives tokens
        that the model lacks, or the text is shorter than one sequence, or than `samples` of them.
    TypeError
        If `files` is one path.
    OSError
        If a file cannot be read.
    """
    if isinstance(files, (str, Path)):
        raise TypeError("text: expected a sequence of paths, got one path")
    if length < 2:
        raise ValueError(f"sequence_length: expected at least 2, got {length}")
    if samples is not None and samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    paths = [Path(file) for file in files]
    blocks = sum(-(-file_size(file) // BLOCK) for file in paths)
    positions = checkpoint.config.max_position_embeddings
    if length > positions:
        log.warning(
            "sequence_length %d is longer than max_position_embeddings, %d, of %s: the model was not "
            "trained for such positions",
            length,
            positions,
            checkpoint.path,
        )
    encoder = TextEncoder(checkpoint)
    pieces = [np.empty(0, np.int32)]
    with Progress(max(1, blocks)) as progress:
        for file in paths:
            pieces += encoder.pieces(read_documents(file, checkpoint, progress))
    tokens = np.concatenate(pieces)
    own = length - len(encoder.prefix)
    if own < 1:
        raise ValueError(
            f"sequence_length: expected more than the {len(encoder.prefix)} special tokens that "
            f"begin a sequence, got {length}"
        )
    wanted = 1 if samples is None else samples
    return _cut(tokens, np.array(encoder.prefix, np.int32), own, wanted)


def _cut(
    tokens: NDArray[np.int32], prefix: NDArray[np.int32], own: int, wanted: int
) -> NDArray[np.int32]:
    """All sequences of `prefix` and `own` tokens of the text, at least `wanted`."""
    available = len(tokens) // own
    if available < wanted:
        raise ValueError(
            f"text: expected at least {wanted * own} tokens for {wanted} sequence"
            f"{'s' if wanted > 1 else ''} of {own + len(prefix)}, got {len(tokens)}"
        )
    result = np.empty((available, len(prefix) + own), np.int32)
    result[:, : len(prefix)] = prefix
    result[:, len(prefix) :] = tokens[: available * own].reshape(available, own)
    return result


def evenly_spaced(available: int, wanted: int) -> NDArray[np.int64]:
    """Indices of `wanted` of the `available` sequences, evenly spaced."""
    return np.arange(wanted) * available // wanted
