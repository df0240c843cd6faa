"""Every architecture against transformers: the same losses, and quantized checkpoints that it loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from interop.architectures import VARIANTS, save
from numbacalib.models import Decoder, open_checkpoint
from numbacalib.models.architectures import ARCHITECTURES

RTOL = 1e-5
"""Of the perplexity; both sides compute in float32 and add in another order."""


def random_tokens(length: int = 80) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 320, (2, length))


def loss_of(model: Any, tokens: NDArray[Any]) -> float:
    """Mean negative log likelihood, summed in float64."""
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)).logits[:, :-1].double()
    return float(
        torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.from_numpy(tokens)[:, 1:].flatten()
        )
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_perplexity(tmp_path: Path, variant: str) -> None:
    model, tokens = save(tmp_path, variant), random_tokens()
    decoder = Decoder(open_checkpoint(tmp_path))
    assert decoder.loss(tokens) == pytest.approx(loss_of(model, tokens), abs=RTOL)


def test_every_architecture_is_compared() -> None:
    assert {variant.partition("-")[0] for variant in VARIANTS} == set(ARCHITECTURES)
