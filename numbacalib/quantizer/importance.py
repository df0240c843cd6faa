"""Weights of quantization errors from a file, of either kind that there is."""

from __future__ import annotations

from pathlib import Path

from numpy.typing import NDArray

from numbacalib.formats.imatrix import read_imatrix
from numbacalib.models.gguf_file import is_gguf
from numbacalib.statistics import load_fisher


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
    OSError
        If the file cannot be opened.
    ValueError
        If the file is of neither kind, or damaged. The message is one line that names the file.
    """
    if is_gguf(path):
        return read_imatrix(path)
    try:
        found = load_fisher(path)
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(
            f"{path}: expected an imatrix file in GGUF form or Fisher information: {reason}"
        ) from None
    return {name.removesuffix(".weight"): layer.fisher for name, layer in found.items()}
