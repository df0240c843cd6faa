"""Runs of the command line on tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from numbacalib.cli import main
from numbacalib.formats.compressed_tensors import CompressedTensors
from numbacalib.models import open_checkpoint


def run(*arguments: Any) -> int:
    """Run the command line, and return its exit status."""
    return main([str(argument) for argument in arguments])


def contents(directory: Path) -> dict[str, bytes]:
    """Bytes of a directory's files by name."""
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir())}


def assert_one_line(error: str, message: str) -> None:
    """Find one line of an error, which has the message."""
    lines = [line for line in error.splitlines() if line.startswith("numbacalib: error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in error


def assert_whole(output: Path) -> None:
    """Read the checkpoint of a model of two blocks."""
    assert len(CompressedTensors().layers(open_checkpoint(output))) == 14
    assert (output / "tokenizer.json").is_file()


def packed_codes(path: Path) -> dict[str, np.ndarray]:
    """Codes of a checkpoint's layers by name."""
    layers = CompressedTensors().layers(open_checkpoint(path))
    return {name: layers[name].codes for name in layers}
