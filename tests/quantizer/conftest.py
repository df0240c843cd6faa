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


@pytest.fixture(autouse=True)
def _tried_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the simulator, where seconds mean nothing, let plans try each part of a run once.

    Nor does it prove outputs on a thousand tokens, which takes it minutes.
    """
    if request.config.getoption("--backend") != "cudasim":
        return
    from numbacalib.quantizer import job, trial  # not before the backend is chosen

    monkeypatch.setattr(job, "HELD_OUT_TOKENS", 4)
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    monkeypatch.setattr(trial, "_twice", lambda action: (action(), 2.0, 1.0))
