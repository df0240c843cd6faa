"""Text files as token sequences of one length, read and tokenized in pieces."""

from __future__ import annotations

import codecs
import io
import logging
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from numbacalib.models import Checkpoint
from numbacalib.models.text_encoder import TextEncoder
from numbacalib.quantizer.progress import Progress

BLOCK = 1 << 16
"""Bytes that are read and tokenized at a time: an `Encoding` takes 200 times the size of its text."""

log = logging.getLogger("numbacalib")


def read_sequences(
    checkpoint: Checkpoint, files: Sequence[str | Path], length: int, samples: int | None = None
) -> NDArray[np.int32]:
    r"""Tokenize text files and cut them into sequences, int32 [S, length].

    Each file is tokenized as one text; their tokens are joined and cut without overlap, and what is
    left at the end is dropped. The special tokens that the tokenizer puts before a text stand before
    every sequence, as part of its length. Those that it puts after a text stand nowhere: no sequence
    ends where a text does.

    Files are UTF-8, with or without a byte-order mark, and their lines end as in Python's text mode:
    all of ``\r\n``, ``\r`` and ``\n`` are ``\n``.

    Parameters
    ----------
    checkpoint : Checkpoint
        Whose tokenizer is used. Sequences longer than its ``max_position_embeddings`` are a warning.
    files : sequence of paths
    length : int
        Tokens of a sequence, at least 2.
    samples : int, optional
        How many sequences to take, evenly spaced over the text; all by default.

    Raises
    ------
    ValueError
        If a file is not a regular file of UTF-8 text, the tokenizer refuses it or gives tokens that
        the model lacks, or the text is shorter than one sequence, or than `samples` of them.
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
    blocks = sum(-(-_size(file) // BLOCK) for file in paths)
    positions = checkpoint.config.max_position_embeddings
    if length > positions:
        log.warning(
            "sequence_length %d is longer than max_position_embeddings, %d, of %s: the model was not "
            "made for such positions",
            length,
            positions,
            checkpoint.path,
        )
    encoder = TextEncoder(checkpoint)
    pieces = [np.empty(0, np.int32)]
    with Progress(max(1, blocks)) as progress:
        for file in paths:
            pieces += encoder.pieces(_read(file, progress))
    tokens = np.concatenate(pieces)
    own = length - len(encoder.prefix)
    if own < 1:
        raise ValueError(
            f"sequence_length: expected more than the {len(encoder.prefix)} special tokens that "
            f"begin a sequence, got {length}"
        )
    return _cut(tokens, np.array(encoder.prefix, np.int32), own, samples)


def _cut(
    tokens: NDArray[np.int32], prefix: NDArray[np.int32], own: int, samples: int | None
) -> NDArray[np.int32]:
    """Sequences of `prefix` and `own` tokens of the text."""
    available = len(tokens) // own
    wanted = 1 if samples is None else samples
    if available < wanted:
        raise ValueError(
            f"text: expected at least {wanted * own} tokens for {wanted} sequence"
            f"{'s' if wanted > 1 else ''} of {own + len(prefix)}, got {len(tokens)}"
        )
    cut = tokens[: available * own].reshape(available, own)
    if samples is not None:
        cut = cut[np.arange(samples) * available // samples]
    result = np.empty((len(cut), len(prefix) + own), np.int32)
    result[:, : len(prefix)] = prefix
    result[:, len(prefix) :] = cut
    return result


def _size(file: Path) -> int:
    """Bytes of a file that can be read to its end, which pipes and devices need not have."""
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise ValueError(f"{file}: expected a file of text, got {kind}")
    return status.st_size


def _read(file: Path, progress: Progress) -> Iterator[str]:
    r"""Decode a file block by block, without a byte-order mark and with ``\n`` for all line ends."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines = io.IncrementalNewlineDecoder(None, translate=True)
    begin, is_first = 0, True
    with file.open("rb") as stream:
        while True:
            data = stream.read(BLOCK)
            if (nul := data.find(b"\0")) >= 0:
                raise ValueError(f"{file}: expected UTF-8 text, got a zero at byte {begin + nul}")
            held = len(decoder.getstate()[0])  # the beginning of a character, of the block before
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                at = error.start
                raise ValueError(
                    f"{file}: expected UTF-8 text, got 0x{error.object[at]:02x} at byte "
                    f"{begin - held + at}"
                ) from None
            text = lines.decode(text, final=not data)
            if is_first:
                text, is_first = text.removeprefix("\ufeff"), False
            if text:
                yield text
            if not data:
                return
            begin += len(data)
            progress.step()
            progress.show(f"tokenizing {file.name}")
