"""What most tests of whole runs start from: a text and a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from models.tiny import TEXT, write_tiny_checkpoint


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of some thousand tokens."""
    file = tmp_path / "text.txt"
    file.write_text(TEXT * 20, encoding="utf-8")
    return file


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of two blocks."""
    return write_tiny_checkpoint(tmp_path / "model", dtype="bfloat16")
