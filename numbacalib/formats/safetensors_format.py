"""Formats of Hugging Face directories: ``config.json``, safetensors files, the tokenizer's files."""

from __future__ import annotations

import abc
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.format import Format, LayerGrid, ModelWriter, StoredLayers
from numbacalib.formats.safetensors_writer import SafetensorsWriter
from numbacalib.methods import QuantizedWeight
from numbacalib.methods.settings import STORAGE
from numbacalib.models.fields import Fields
from numbacalib.models.tensor_names import aliases, beside, module_name

if TYPE_CHECKING:
    from numbacalib.models import Checkpoint

_TABLES = ("embed_tokens", "embed_positions", "embed_tokens_per_layer")
"""Suffixes of the names of matrices that are not linear layers."""
_EXCEPT = "-:"
"""Prefix of an expression in GPTQModel's ``dynamic`` for layers that are not quantized."""

GridOf = Callable[[str], LayerGrid]
"""Function from a layer's name to its grid in a configuration; the dtypes of scales are those of the
tensors."""


class Left(NamedTuple):
    """Parts of a model that stay unquantized, by the names that runtimes use."""

    layers: Sequence[str] = ("lm_head",)
    """Linear layers of the decoder."""
    parts: Sequence[str] = ()
    """Parts of the names of everything outside of the decoder, such as ``"vision_tower"``."""

    @property
    def is_wrapped(self) -> bool:
        """Return whether the model has more than the decoder, whose names runtimes then prefix."""
        return any("." not in part for part in self.parts)


class SafetensorsFormat(Format):
    """Format with a few tensors in place of ``<layer>.weight``; the rest stays unchanged."""

    parts: tuple[str, ...]
    """Names of a layer's tensors; the first is always present, the last may be missing."""

    @abc.abstractmethod
    def configuration(self, grids: Mapping[str, LayerGrid], left: Left) -> dict[str, Any]:
        """Return the entries to add to the model's ``config.json``; `left` is not quantized."""

    def files(self, configuration: Mapping[str, Any]) -> dict[str, Any]:
        """Return further JSON files by name, from the result of `configuration`; none by default."""
        del configuration
        return {}

    @abc.abstractmethod
    def pack(self, quantized: QuantizedWeight) -> dict[str, NDArray[Any]]:
        """Return a layer's tensors by their names in the layer.

        Raises
        ------
        ValueError
            If the format cannot hold the weight.
        """

    @abc.abstractmethod
    def unpack(self, tensors: Mapping[str, NDArray[Any]], grid: LayerGrid) -> QuantizedWeight:
        """Undo `pack`.

        Raises
        ------
        ValueError
            If a tensor is missing, or its shape or dtype does not fit the others or the grid.
        """

    @abc.abstractmethod
    def packed_bytes(self, shape: tuple[int, ...], grid: LayerGrid) -> int:
        """Bytes of the tensors that `pack` returns for a layer of `shape` M, K."""

    @abc.abstractmethod
    def stored_shape(self, checkpoint: Checkpoint, layer: str, grid: LayerGrid) -> tuple[int, int]:
        """M and K of a layer, without reading its codes."""

    @abc.abstractmethod
    def grid_of(self, checkpoint: Checkpoint) -> GridOf:
        """Read the configuration; return the function from a layer's name to its grid.

        Raises
        ------
        ValueError
            For an unknown key or value; one line that names the key. The returned function raises it for a
            layer without a grid in the configuration.
        """

    def writer(
        self, directory: Path, checkpoint: Checkpoint, grids: Mapping[str, LayerGrid]
    ) -> DirectoryWriter:
        """See `Format`."""
        return DirectoryWriter(self, directory, checkpoint, grids)

    def layers(self, checkpoint: Checkpoint) -> PackedLayers:
        """See `Format`."""
        return PackedLayers(self, checkpoint)


class DirectoryWriter(ModelWriter):
    """Writer of a directory for transformers: see `ModelWriter`."""

    def __init__(
        self,
        form: SafetensorsFormat,
        directory: Path,
        checkpoint: Checkpoint,
        grids: Mapping[str, LayerGrid],
    ) -> None:
        self._form, self._directory, self._checkpoint = form, directory, checkpoint
        packed = {f"{layer}.weight" for layer in grids}
        self._copied = [name for name in checkpoint.names() if name not in packed]
        named = {module_name(layer, checkpoint.config): grid for layer, grid in grids.items()}
        self._configuration = form.configuration(named, unquantized_linears(checkpoint, grids))
        self._tensors = SafetensorsWriter(directory)
        shapes = {layer: checkpoint.info(f"{layer}.weight").shape for layer in grids}
        self.planned_bytes = sum(map(checkpoint.stored_bytes, self._copied)) + sum(
            form.packed_bytes(shapes[layer], grid) for layer, grid in grids.items()
        )

    def __enter__(self) -> DirectoryWriter:
        config = self._checkpoint.hf_config() | self._configuration
        files = {"config.json": config} | self._form.files(self._configuration)
        for name, content in files.items():
            text = json.dumps(content, indent=2) + "\n"
            (self._directory / name).write_text(text, encoding="utf-8")
        for name, data in self._checkpoint.tokenizer_files().items():
            file = self._directory / name
            file.parent.mkdir(exist_ok=True)  # for additional chat templates
            file.write_bytes(data)
        self._tensors.__enter__()
        return self

    def add_layer(self, name: str, quantized: QuantizedWeight) -> int:
        """See `ModelWriter`."""
        tensors = self._form.pack(quantized)
        for part, tensor in tensors.items():
            self._tensors.add(self._checkpoint.stored_name(f"{name}.{part}"), tensor)
        return sum(tensor.nbytes for tensor in tensors.values())

    def add(self, name: str, tensor: NDArray[Any]) -> None:
        """See `ModelWriter`."""
        self._tensors.add(self._checkpoint.stored_name(name), tensor)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            for name in self._copied:
                stored_name = self._checkpoint.stored_name(name)
                if stored_name not in self._tensors:  # unlike a norm that absorbed channel scales
                    self._tensors.add_stored(stored_name, self._checkpoint.stored(name))
        self._tensors.__exit__(kind, error, traceback)


class PackedLayers(StoredLayers):
    """Quantized linear layers of a checkpoint in one of these formats.

    Raises
    ------
    ValueError
        On construction, before any weight is read: if the configuration is not understood, or has no
        grid for a packed layer. On access: as `SafetensorsFormat.unpack`.
    """

    def __init__(self, form: SafetensorsFormat, checkpoint: Checkpoint) -> None:
        self._form, self._checkpoint = form, checkpoint
        self._names = set(checkpoint.names())
        self._grids: dict[str, LayerGrid] = {}
        try:
            grid_of = form.grid_of(checkpoint)
        except ValueError as error:
            raise ValueError(f"{checkpoint.path}/config.json: {error}") from None
        for layer in _packed_layers(form, checkpoint):
            if "weight" not in form.parts and f"{layer}.weight" in self._names:
                raise ValueError(
                    f"{checkpoint.path}: {layer}.{form.parts[0]}: expected no {layer}.weight beside it"
                )
            try:
                self._grids[layer] = grid_of(module_name(layer, checkpoint.config))
            except ValueError as error:
                raise ValueError(f"{checkpoint.path}: {error}") from None

    def shape(self, layer: str) -> tuple[int, int]:
        """See `StoredLayers`."""
        return self._form.stored_shape(self._checkpoint, layer, self._grids[layer])

    def tensors(self, layer: str) -> tuple[str, ...]:
        """See `StoredLayers`."""
        names = (f"{layer}.{part}" for part in self._form.parts)
        return tuple(name for name in names if name in self._names)

    def __getitem__(self, layer: str) -> QuantizedWeight:
        grid = self._grids[layer]
        tensors = {
            name.removeprefix(f"{layer}."): self._checkpoint.tensor(name)
            for name in self.tensors(layer)
        }
        try:
            return self._form.unpack(tensors, grid)
        except ValueError as error:
            raise ValueError(f"{self._checkpoint.path}: {layer}.{error}") from None

    def __contains__(self, layer: object) -> bool:
        return layer in self._grids

    def __iter__(self) -> Iterator[str]:
        return iter(self._grids)

    def __len__(self) -> int:
        return len(self._grids)


def stored_matrix(checkpoint: Checkpoint, name: str) -> tuple[int, int]:
    """Return the shape of a tensor that must be a matrix.

    Raises
    ------
    ValueError
        If it is not.
    """
    shape = checkpoint.info(name).shape
    if len(shape) != 2:
        raise ValueError(f"{checkpoint.path}: {name}: expected a matrix, got {list(shape)}")
    return shape[0], shape[1]


def unquantized_linears(checkpoint: Checkpoint, grids: Mapping[str, LayerGrid]) -> Left:
    """Find a checkpoint's matrices, except embeddings, that are not in `grids`: its head, and others."""
    parts = beside(checkpoint.config, checkpoint.names())
    linears = [
        name.removesuffix(".weight")
        for name in checkpoint.names()
        if name.endswith(".weight") and len(checkpoint.info(name).shape) == 2
    ]
    own = [
        name
        for name in linears
        if not name.endswith(_TABLES) and not any(part in name for part in parts)
    ]
    tied = [] if "lm_head" in own else ["lm_head"]
    left = [name for name in [*own, *tied] if name not in grids]
    left += [other for name in left for other in aliases(name, checkpoint.config)]
    return Left([module_name(name, checkpoint.config) for name in left], parts)


def stored_tensor(
    tensors: Mapping[str, NDArray[Any]],
    name: str,
    dtype: Any,
    shape: tuple[int | None, ...],
) -> NDArray[Any]:
    """Return one tensor, checked for a subtype of `dtype` and the lengths in `shape`; None is any.

    Raises
    ------
    ValueError
        If it is missing or does not fit.
    """
    if name not in tensors:
        raise ValueError(f"{name}: expected a tensor of this name, found none")
    tensor = tensors[name]
    fits = len(tensor.shape) == len(shape) and all(
        expected in (None, length) for expected, length in zip(shape, tensor.shape, strict=True)
    )
    if not fits or not (dtype is None or np.issubdtype(tensor.dtype, dtype)):
        kind = "" if dtype is None else f"{dtype.__name__} "
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise ValueError(
            f"{name}: expected {kind}[{wanted}], got {tensor.dtype} {list(tensor.shape)}"
        )
    return tensor


def stored_floats(
    tensors: Mapping[str, NDArray[Any]], name: str, shape: tuple[int | None, ...]
) -> NDArray[Any]:
    """Return a tensor of scales or biases: see `stored_tensor`."""
    tensor = stored_tensor(tensors, name, None, shape)
    if tensor.dtype.name not in STORAGE:
        raise ValueError(f"{name}: expected {', '.join(STORAGE)}, got {tensor.dtype}")
    return tensor


def require_integer_zeros(quantized: QuantizedWeight) -> None:
    """Refuse real zeros, for formats with integer zeros.

    Raises
    ------
    ValueError
    """
    if quantized.zeros.dtype != np.uint8:
        raise ValueError(f"zeros: expected integers in this format, got {quantized.zeros.dtype}")


def read_g_idx(
    tensors: Mapping[str, NDArray[Any]], name: str, channels: int, groups: int
) -> NDArray[np.int64]:
    """Return the group of each channel, int64 [K], checked.

    Raises
    ------
    ValueError
        If one is not a group number.
    """
    g_idx = stored_tensor(tensors, name, np.integer, (channels,)).astype(np.int64)
    if g_idx.min() < 0 or g_idx.max() >= groups:
        raise ValueError(f"{name}: expected 0 to {groups - 1}, got {g_idx.min()} to {g_idx.max()}")
    return g_idx


def exceptions(left: Left) -> dict[str, Any]:
    """Return the configuration that excludes layers other than the head in GPTQModel."""
    excepted = [f"^{re.escape(name)}$" for name in left.layers if name != "lm_head"]
    excepted += [f".*{re.escape(part)}.*" for part in left.parts]
    return {"dynamic": {f"{_EXCEPT}{each}": {} for each in excepted}} if excepted else {}


def check_exceptions(config: Fields) -> None:
    """Refuse GPTQModel's settings of single layers, except that a layer is not quantized.

    Raises
    ------
    ValueError
    """
    if any(not key.startswith(_EXCEPT) for key in config.object("dynamic", None) or ()):
        raise config.error("dynamic", f"{_EXCEPT} before each expression")


def written_group_size(grid: LayerGrid) -> int:
    """Return the ``group_size`` of a configuration, where -1 is one scale per row."""
    return -1 if grid.group_size is None else grid.group_size


def one_grid(
    config: Fields, bits: Sequence[int], symmetric: bool, harmless: Collection[str]
) -> GridOf:
    """Read a configuration with one ``bits`` and ``group_size`` for all layers.

    Raises
    ------
    ValueError
        For unknown values, and for keys that were neither read nor are `harmless`; one line that names
        the key.
    """
    size = config.integer("group_size", -1)
    if size == 0:
        raise config.error("group_size", "-1 or a positive integer")
    grid = LayerGrid(
        config.choice("bits", bits), None if size == -1 else size, symmetric, np.dtype(np.float32)
    )
    config.refuse_unread(harmless)
    return lambda layer: grid


def _packed_layers(form: SafetensorsFormat, checkpoint: Checkpoint) -> Iterator[str]:
    """Yield the layers with the format's first part, or with the first two if the first is ``weight``."""
    names = set(checkpoint.names())
    first, second, *_ = form.parts
    for name in checkpoint.names():
        layer = name.removesuffix(f".{first}")
        if layer != name and (first != "weight" or f"{layer}.{second}" in names):
            yield layer
