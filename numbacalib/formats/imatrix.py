"""Importance files of llama.cpp (imatrix) in GGUF form, written from the inputs' statistics.

For each weight two float32 tensors: ``<name>.in_sum2``, the sums of the squared inputs of each
channel, and ``<name>.counts``, the tokens they were summed over. Described in llama.cpp's
``tools/imatrix``: https://github.com/ggml-org/llama.cpp/tree/master/tools/imatrix
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.gguf_file import GGUFFile, named
from numbacalib.models.gguf_layouts import Tiles, column_tiles
from numbacalib.models.gguf_names import gguf_name, hf_name, stored_names, variant_of
from numbacalib.ops.matrix import to_host
from numbacalib.runtime import checks
from numbacalib.runtime.extras import extra

if TYPE_CHECKING:
    from numbacalib.models.config import ModelConfig

_SUMS, _COUNTS = ".in_sum2", ".counts"


class SquaredInputs(Protocol):
    """Statistics of a layer's inputs that are written; `InputStatistics` has them."""

    @property
    def tokens(self) -> int:
        """Tokens seen."""

    @property
    def mean_square(self) -> Any:
        """Mean square of each input channel, [K]."""


def write_imatrix(
    path: str | Path,
    statistics: Mapping[str, SquaredInputs],
    *,
    datasets: Sequence[str] = (),
    chunk_size: int = 512,
    config: ModelConfig | None = None,
) -> None:
    """Write the mean squares of layers' inputs for ``llama-quantize --imatrix`` (extra `models`).

    Parameters
    ----------
    path : str or Path
    statistics : mapping of layer names, as Hugging Face has them without ``.weight``
    datasets : sequence of str
        Names of the texts, for the file's readers.
    chunk_size : int, default 512
        Tokens of a chunk, llama.cpp's unit of text length.
    config : ModelConfig, optional
        Of the model whose layers these are; by default they have Llama's names.

    Raises
    ------
    ValueError
        If a layer has no name in GGUF, or has seen no tokens.
    """
    with extra("models"):
        import gguf

    chunk_size = checks.integer("chunk_size", chunk_size, 1, 1 << 31)
    for name, layer in statistics.items():
        if layer.tokens == 0:
            raise ValueError(f"statistics: expected tokens in every layer, got none in {name}")
    tokens = max((layer.tokens for layer in statistics.values()), default=0)
    writer = gguf.GGUFWriter(path, arch="")  # the form belongs to no architecture
    writer.add_type(gguf.GGUFType.IMATRIX)
    writer.add_array(gguf.Keys.IMatrix.DATASETS, list(datasets))
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, -(-tokens // chunk_size))
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, chunk_size)
    for name, layer in statistics.items():
        count, mean = np.float32(layer.tokens), to_host(layer.mean_square)
        if tiles := _tiles(config, name):
            mean = mean[tiles.order(1)]
        for stored in _names(config, f"{name}.weight"):
            writer.add_tensor(stored + _SUMS, (count * mean)[None])
            writer.add_tensor(stored + _COUNTS, np.full((1, 1), count))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _names(config: ModelConfig | None, name: str) -> tuple[str, ...]:
    """GGUF names of the tensors with a layer's inputs; with latent attention the key part has others."""
    if config is None:
        return stored_names(name)
    if config.latent is not None:
        return (gguf_name(name, config.model_type),)
    return stored_names(name, config.model_type, variant_of(config))


def _kind(config: ModelConfig | None) -> str:
    return "llama" if config is None else config.model_type


def _tiles(config: ModelConfig | None, layer: str) -> Tiles | None:
    """Order of a layer's channels in a file; None if it is Hugging Face's."""
    return None if config is None else column_tiles(config, f"{layer}.weight")


def read_imatrix(
    path: str | Path, *, config: ModelConfig | None = None
) -> dict[str, NDArray[np.float32]]:
    """Mean squares [K] of layers' inputs, by Hugging Face's names without ``.weight``.

    Each can be passed as the `importance` of `numbacalib.methods.rtn`.

    Parameters
    ----------
    path : str or Path
    config : ModelConfig, optional
        As in `write_imatrix`.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If the file is another kind of GGUF file or damaged, or has a layer of an unsupported architecture,
        such as a mixture of experts. The message is one line that names the file.
    """
    file = GGUFFile(path)
    with named(file.path):
        kind = file.metadata.string("general.type")
        if kind != "imatrix":
            raise ValueError("expected an imatrix file, got another kind of GGUF file")
    means: dict[str, NDArray[np.float32]] = {}
    for name in file.tensors:
        layer, dot, part = name.rpartition(".")
        other = _SUMS if dot + part == _COUNTS else _COUNTS
        if dot + part not in (_SUMS, _COUNTS):
            continue
        if layer + other not in file.tensors:
            raise ValueError(f"{file.path}: {name}: expected {layer}{other} beside it, got none")
        if other == _COUNTS:
            with named(file.path):
                key = hf_name(layer, _kind(config)).removesuffix(".weight")
            mean = _mean_square(file, layer)
            tiles = _tiles(config, key)
            means[key] = mean if tiles is None else mean[np.argsort(tiles.order(1))]
    if not means:
        raise ValueError(f"{file.path}: expected sums of squares (*{_SUMS}), found none")
    return means


def _mean_square(file: GGUFFile, layer: str) -> NDArray[np.float32]:
    sums, counts = file.read(layer + _SUMS), file.read(layer + _COUNTS)
    with named(file.path):
        # Files of experts have one row and one count per expert.
        if counts.size != 1 or not 0 < counts.item() < np.inf:
            raise ValueError(
                f"{layer}{_COUNTS}: expected one count above 0, got {counts.ravel()[:3]}"
            )
        if sums.size != sums.shape[-1]:
            raise ValueError(f"{layer}{_SUMS}: expected one row of sums, got shape {sums.shape}")
        with np.errstate(over="ignore"):
            mean = (sums.ravel() / np.float64(counts.item())).astype(np.float32)
        # a NaN propagates to min and fails the comparison
        if not (mean.min() >= 0 and mean.max() < np.inf):
            raise ValueError(
                f"{layer}{_SUMS}: expected finite sums of squares, got {sums.min()} to {sums.max()}"
            )
    return mean
