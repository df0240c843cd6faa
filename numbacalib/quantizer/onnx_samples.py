"""Statistics of the inputs of an ONNX model's layers: samples run through ONNX Runtime batch by batch.

Samples are arrays, or a text: its tokens, cut into sequences, between the special tokens that the tokenizer
puts around each text. A model that reads text gets these as ``input_ids``, with ``attention_mask`` ones,
``token_type_ids`` zeros, ``position_ids`` 0, 1, ... and ``past_key_values`` empty.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.matmul_nbits import padded
from numbacalib.quantizer.onnx_text import text_samples
from numbacalib.quantizer.settings import Settings
from numbacalib.runtime.checks import rows_of
from numbacalib.runtime.extras import extra
from numbacalib.statistics import InputStatistics

if TYPE_CHECKING:
    from numbacalib.formats.onnx_graph import GraphLayer, OnnxGraph

BATCH = 8
"""Samples per batch, if the model does not fix it."""
HESSIAN_BYTES = 1 << 30
"""Bytes of Hessians that are collected in one pass over the samples."""


class Samples:
    """Samples by the names of a model's inputs, and the layer inputs that the model computes from them.

    Parameters
    ----------
    graph : OnnxGraph
        With at least one layer.
    path : Path
        ``.npz``: an array for each input of the model, samples along the first axis. Any other file is a
        text.
    settings : Settings
        Of which `samples` and `sequence_length` apply to a text.

    Raises
    ------
    ValueError
        If the file or its arrays do not fit, or ONNX Runtime does not run the model.
    """

    def __init__(self, graph: OnnxGraph, path: Path, settings: Settings) -> None:
        self._graph = graph
        inputs = self._session(graph.layers[0].inputs).get_inputs()
        if path.suffix == ".npz":
            self._arrays = _read_samples(path, [each.name for each in inputs])
        else:
            self._arrays = text_samples(graph.path, path, inputs, settings)
        self._count = min(map(len, self._arrays.values()))
        fixed = {each.shape[0] for each in inputs if each.shape}
        sizes = [size for size in fixed if isinstance(size, int)]
        self._batch = min(sizes, default=min(BATCH, self._count))
        if self._count < self._batch or max(map(len, self._arrays.values())) > self._count:
            lengths = {name: len(array) for name, array in self._arrays.items()}
            raise ValueError(
                f"{path}: expected as many samples of each input, {self._batch} or more, got {lengths}"
            )

    def statistics(self, block: int) -> Iterator[tuple[list[GraphLayer], InputStatistics]]:
        """Yield layers that multiply the same tensors, with the statistics of these, padded to blocks.

        The samples run once for each `HESSIAN_BYTES` of statistics, which are dropped once yielded.
        """
        shared: dict[tuple[str, ...], list[GraphLayer]] = {}
        for layer in self._graph.layers:
            shared.setdefault(layer.inputs, []).append(layer)
        part: dict[tuple[str, ...], InputStatistics] = {}
        size = 0
        for inputs, layers in shared.items():
            channels = padded(layers[0].shape[1], block)
            if part and size + 4 * channels**2 > HESSIAN_BYTES:
                yield from self._collected(part, shared)
                size = 0
            part[inputs] = InputStatistics(channels)
            size += 4 * channels**2
        yield from self._collected(part, shared)

    def _collected(
        self,
        part: dict[tuple[str, ...], InputStatistics],
        shared: dict[tuple[str, ...], list[GraphLayer]],
    ) -> Iterator[tuple[list[GraphLayer], InputStatistics]]:
        """Fill the statistics of some inputs in one pass, then yield and drop them."""
        names = tuple(dict.fromkeys(name for inputs in part for name in inputs))
        for tensors in self._run(names):
            for inputs, statistics in part.items():
                # one update of a matrix [K, K], however many nodes multiply by the weight
                rows = [rows_of(_filled(tensors[name], len(statistics.hessian))) for name in inputs]
                try:
                    statistics.update(rows[0] if len(rows) == 1 else np.concatenate(rows))
                except ValueError as error:
                    raise ValueError(f"{shared[inputs][0].name}: {error}") from None
        for inputs in list(part):
            yield shared[inputs], part.pop(inputs)

    def _run(self, names: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the tensors of these names, batch after batch; an incomplete last batch is dropped."""
        session = self._session(names)
        for first in range(0, self._count - self._batch + 1, self._batch):
            batch = {
                name: array[first : first + self._batch] for name, array in self._arrays.items()
            }
            with self._named():
                found = session.run(list(names), batch)
            yield dict(zip(names, found, strict=True))

    def _session(self, names: Sequence[str]) -> Any:
        with extra("onnx"):
            import onnxruntime
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        folder = str(self._graph.path.parent.resolve())
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", folder
        )
        probe = self._graph.probe(names)
        with self._named():
            return onnxruntime.InferenceSession(probe, options, providers=["CPUExecutionProvider"])

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Name the model in errors of ONNX Runtime, which have no class of their own.

        Only its calls belong inside.
        """
        try:
            yield
        except Exception as error:
            raise ValueError(
                f"{self._graph.path}: ONNX Runtime does not run it: {error}"
            ) from error


def _filled(tensor: NDArray[Any], channels: int) -> NDArray[Any]:
    """Pad the last axis with zeros."""
    missing = channels - tensor.shape[-1]
    return np.pad(tensor, [(0, 0)] * (tensor.ndim - 1) + [(0, missing)]) if missing else tensor


def _read_samples(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read an array for each name, and refuse files with others."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (ValueError, OSError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: expected a .npz file of arrays: {error}") from None
    if arrays.keys() != set(names):
        raise ValueError(
            f"{path}: expected arrays named {', '.join(sorted(names))}, got {', '.join(sorted(arrays))}"
        )
    if empty := [name for name, array in arrays.items() if array.ndim == 0 or not array.size]:
        raise ValueError(f"{path}: {empty[0]}: expected at least one sample, got none")
    return arrays
