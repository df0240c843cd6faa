"""Weights of quantization errors from a file, of either kind that there is."""

from __future__ import annotations

from pathlib import Path

from numpy.typing import NDArray

from numbacalib.formats.imatrix import read_imatrix
from numbacalib.runtime.extras import extra
from numbacalib.statistics import load_fisher

GGUF_MAGIC = b"GGUF"


def read_importance(path: str | Path) -> dict[str, NDArray]:
    """Read the importance of layers' weights (extra `models`), by names without ``.weight``.

    Each can be the `importance` of `numbacalib.methods.quantize_layer`.

    Parameters
    ----------
    path : str or Path
        An importance file of llama.cpp in GGUF form: mean squares [K] of the input channels. Or what
        `numbacalib.statistics.save_fisher` wrote: Fisher information [M, K].

    Raises
    ------
    ValueError
        If the file is of neither kind.
    """
    with extra("models"):
        from safetensors import SafetensorError

    with Path(path).open("rb") as file:
        magic = file.read(len(GGUF_MAGIC))
    if magic == GGUF_MAGIC:
        return read_imatrix(path)
    try:
        found = load_fisher(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path}: expected an imatrix file in GGUF form or Fisher information: {error}"
        ) from error
    return {name.removesuffix(".weight"): layer.fisher for name, layer in found.items()}
