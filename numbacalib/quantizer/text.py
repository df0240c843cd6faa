"""Text files as token sequences of one length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def read_sequences(
    tokenizer: Tokenizer, files: Sequence[str | Path], length: int, samples: int | None = None
) -> NDArray[np.int64]:
    """Tokenize text files and cut them into sequences, int64 [S, length].

    The files are joined and cut without overlap; what is left at the end is dropped. A tokenizer that
    puts a token before every text (a beginning-of-sequence token) has it before every sequence, as
    part of the length.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
    files : sequence of paths
        UTF-8 text.
    length : int
        Tokens of a sequence, at least 2.
    samples : int, optional
        How many sequences to take, evenly spaced over the text; all by default.

    Raises
    ------
    ValueError
        If a file is not UTF-8, or the text is shorter than one sequence, or than `samples` of them.
    OSError
        If a file cannot be read.
    """
    if length < 2:
        raise ValueError(f"sequence_length: expected at least 2, got {length}")
    if samples is not None and samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    prefix = tokenizer.encode("").ids[:1]
    tokens: list[int] = []
    for file in files:
        tokens += tokenizer.encode(_read(Path(file)), add_special_tokens=False).ids
    own = length - len(prefix)
    available = len(tokens) // own
    wanted = 1 if samples is None else samples
    if available < wanted:
        raise ValueError(
            f"text: expected at least {wanted * own} tokens for {wanted} sequence"
            f"{'s' if wanted > 1 else ''} of {length}, got {len(tokens)}"
        )
    cut = np.array(tokens[: available * own], np.int64).reshape(available, own)
    if samples is not None:
        cut = cut[np.arange(samples) * available // samples]
    return np.concatenate([np.tile(np.array(prefix, np.int64), (len(cut), 1)), cut], axis=1)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: expected UTF-8 text, got byte {error.start} of another kind"
        ) from None
