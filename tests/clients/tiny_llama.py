"""A tiny llama that every client's kernels take, quantized without a text, and logits of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from models.tiny import VOCAB_SIZE, write_tiny_checkpoint

from numbacalib.formats import dequantized
from numbacalib.models import Decoder, open_checkpoint
from numbacalib.quantizer import Settings, quantize

TOKENS = np.random.default_rng(1).integers(0, VOCAB_SIZE, 24)


def write_quantized(
    directory: Path,
    form: str,
    *,
    dtype: str = "float16",
    model: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Quantize a llama with K of 128 and 256 by rounding, or by `settings`; return where it is.

    `model` has more of its configuration.
    """
    sizes = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 256} | dict(model or {})
    source = directory / "model"
    if not source.exists():
        write_tiny_checkpoint(source, dtype=dtype, **sizes)
    text = settings.pop("text", ())
    quantize(
        source,
        directory / "quantized",
        text=text,
        settings=Settings(**({"method": "rtn"} | settings)),
        formats=[form],
        device="cpu",
    )
    return directory / "quantized"


def our_logits(directory: Path) -> np.ndarray:
    """Logits of `TOKENS`, float32, over the weights that the codes stand for."""
    decoder = Decoder(dequantized(open_checkpoint(directory)))
    return decoder.logits(decoder.forward(TOKENS))


def assert_same_logits(theirs: np.ndarray, directory: Path, bound: float) -> None:
    """Compare with a client's logits, up to a share of the largest one."""
    ours = our_logits(directory)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=bound * np.abs(ours).max())
