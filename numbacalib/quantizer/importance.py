"""Importance of weights, read from an imatrix file or a file of Fisher information."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from numpy.typing import NDArray

from numbacalib.formats.imatrix import read_imatrix
from numbacalib.methods.settings import non_negative
from numbacalib.models.config import ModelConfig
from numbacalib.models.gguf_file import is_gguf
from numbacalib.statistics import load_fisher


def read_importance(
    path: str | Path,
    shapes: Mapping[str, tuple[int, int]] | None = None,
    *,
    config: ModelConfig | None = None,
) -> dict[str, NDArray]:
    """Read the importance of layers' weights (extra `models`), by names without ``.weight``.

    Each can be passed as the `importance` of `numbacalib.methods.quantize_layer`.

    Parameters
    ----------
    path : str or Path
        An importance file of llama.cpp in GGUF form: mean squares [K] of the input channels. Or a file of
        `numbacalib.statistics.save_fisher`: Fisher information [M, K].
    shapes : mapping of str to (int, int), optional
        M and K of the layers that must be there, with an importance [K] or [M, K] that fits.
    config : ModelConfig, optional
        Of the model whose layers these are; by default they have Llama's names.

    Returns
    -------
    dict of str to array [K] or [M, K]

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If the file is of neither kind or damaged, a layer is missing, or its importance has another shape.
        The message is one line that names the file.

    Examples
    --------
    >>> from numbacalib.quantizer import collect, read_importance
    >>> collect("model", "collected", text=["text.txt"], samples=2, sequence_length=32)
    >>> importance = read_importance("collected/imatrix.gguf")
    >>> importance["model.layers.0.mlp.down_proj"].shape
    (96,)
    """
    found: dict[str, NDArray]
    if is_gguf(path):
        found = dict(read_imatrix(path, config=config))
    else:
        try:
            layers = load_fisher(path)
        except ValueError as error:
            reason = str(error).removeprefix(f"{path}: ")
            raise ValueError(
                f"{path}: expected an imatrix file in GGUF form or Fisher information: {reason}"
            ) from None
        found = {name.removesuffix(".weight"): layer.fisher for name, layer in layers.items()}
    for name, (rows, channels) in (shapes or {}).items():
        if name not in found:
            raise ValueError(f"{path}: expected the importance of {name}, got none")
        non_negative(f"{path}: {name}", found[name], [(channels,), (rows, channels)])
    return found
