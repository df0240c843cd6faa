"""Interface of formats: the grids that a format can store, a writer and a reader.

To add one: derive from `Format` (from `SafetensorsFormat` for a Hugging Face directory), list the grids
that it stores in `rules`, and add it to `registry.FORMATS`. The quantizer then

1. calls `grids` for each layer's stored grid, which refuses what the file cannot hold, before any work;
2. chooses codes on exactly these grids, with scales rounded as they are stored;
3. passes each layer to the `ModelWriter` of `writer`, which writes it and copies the rest.

`layers` reads them back, for `evaluate`, `convert` and the tests.
"""

from __future__ import annotations

import abc
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.group_lengths import group_lengths
from numbacalib.methods import QuantizedWeight
from numbacalib.methods.settings import GridFinder
from numbacalib.models.checkpoint import TensorInfo
from numbacalib.spec.grid import INTEGER

if TYPE_CHECKING:
    from numbacalib.models import Checkpoint
    from numbacalib.models.config import ModelConfig
    from numbacalib.models.safetensors_file import StoredTensor


@dataclass(frozen=True)
class LayerGrid:
    """Grid on which a layer's codes are chosen, as the file will store it."""

    bits: int
    group_size: int | None
    """Input channels that share a scale; None is one scale per row."""
    symmetric: bool
    scale_dtype: np.dtype
    """Dtype in which scales are stored."""
    find: GridFinder | None = None
    """Finder of scales and zeros as the file stores them, if that takes more than rounding scales of the
    integer grid to `scale_dtype`: real zeros, super-blocks. Two grids are equal only with the same one."""
    g_idx: bool = False
    """True if groups need not be runs of channels."""
    element: str = INTEGER
    """Kind of the codes; see `numbacalib.methods.gptq`."""

    def __str__(self) -> str:
        """Describe it in an error."""
        size = "one scale a row" if self.group_size is None else f"groups of {self.group_size}"
        kind = "symmetric" if self.symmetric else "asymmetric"
        own = "" if self.find is None else ", as the format fixes it"
        order = " of any channels" if self.g_idx else ""
        codes = "" if self.element == INTEGER else f" of {self.element}"
        return f"{self.bits} bits{codes}, {kind}, {size}{order}, scales in {self.scale_dtype}{own}"


@dataclass(frozen=True, kw_only=True)
class GridRules:
    """Rules for the grids that a format can store."""

    bits: tuple[int, ...]
    symmetric: tuple[bool, ...] = (True, False)
    group_sizes: tuple[int, ...] | None = None
    """None: any that divides K."""
    whole_rows: bool = True
    """True if one scale per row can be stored."""
    scale_dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16")
    """Layers' own dtypes in which scales can be stored; the first replaces any other one."""
    g_idx: bool = False
    """True if groups need not be runs of channels."""
    row_multiple: int = 1
    """M must be a multiple of it."""
    channel_multiple: int = 1
    """K must be a multiple of it."""

    def check(self, grid: LayerGrid) -> None:
        """Refuse a grid on which no layer can be stored; the error names the possible ones.

        Raises
        ------
        ValueError
        """
        if grid.element != INTEGER:
            raise ValueError(f"codes: expected integers, got {grid.element}")
        if grid.bits not in self.bits:
            raise ValueError(f"bits: expected {_one_of(self.bits)}, got {grid.bits}")
        if grid.symmetric not in self.symmetric:
            kinds = ("asymmetric", "symmetric")
            raise ValueError(
                f"symmetric: expected the {kinds[not grid.symmetric]} grid, got the "
                f"{kinds[grid.symmetric]} one"
            )
        sizes = self.group_sizes or ()
        expected = _one_of((*sizes, *(("none",) if self.whole_rows else ())))
        if grid.group_size is None and not self.whole_rows:
            raise ValueError(f"group_size: expected {expected}, got one scale a row")
        if sizes and grid.group_size not in (None, *sizes):
            raise ValueError(f"group_size: expected {expected}, got {grid.group_size}")
        if grid.g_idx and not self.g_idx:
            raise ValueError(
                "act_order: expected static_groups with 'desc', since the file format has no g_idx"
            )

    def check_shape(self, layer: str, shape: tuple[int, ...]) -> None:
        """Refuse a layer whose M or K does not fit.

        Raises
        ------
        ValueError
        """
        multiples = self.row_multiple, self.channel_multiple
        for axis, length, multiple in zip("MK", shape, multiples, strict=True):
            if length % multiple:
                raise ValueError(
                    f"{layer}: expected {axis} a multiple of {multiple}, got {length}: skip the layer "
                    "(--skip), or use another format"
                )

    def scale_dtype(self, weight_dtype: np.dtype) -> np.dtype:
        """Return the dtype that stores the scales of a layer with weights of this dtype."""
        own = weight_dtype.name in self.scale_dtypes
        return weight_dtype if own else np.dtype(self.scale_dtypes[0])


class Format(abc.ABC):
    """Format, by its name on the command line."""

    name: str
    rules: GridRules
    finders: tuple[GridFinder, ...] = ()
    """Grid finders of other formats whose grids this one stores too."""
    methods: tuple[str, ...] = ()
    """Values of its ``quant_method`` in a Hugging Face configuration."""
    own_grid = False
    """True if the format determines each layer's grid."""

    def check(self, asked: LayerGrid) -> None:
        """Refuse a grid that no file of this format can hold, before anything is read.

        Raises
        ------
        ValueError
        """
        self.rules.check(asked)

    own_head = False
    """True if the head is always quantized."""

    def check_own_grid(self, given: Collection[str]) -> None:
        """Refuse options of the grid, by name, if the format determines it.

        Raises
        ------
        ValueError
        """
        if self.own_grid and given:
            name = next(iter(given))
            raise ValueError(f"{name}: expected none with {self.name}, which sets the grid itself")

    def holds(self, layer: str) -> bool:
        """Return whether its clients load a layer of this name quantized: those of blocks, by default."""
        return layer.startswith("model.layers.")

    mixtures: tuple[str, ...] | None = None
    """Types of models whose experts its clients load; None for all."""

    def of_model(self, config: ModelConfig) -> Format:
        """Return the format for a model, if `grids` depend on more than its layers.

        Raises
        ------
        ValueError
            If its clients do not load the model's experts.
        """
        known = self.mixtures
        if config.mixture is not None and known is not None and config.model_type not in known:
            raise ValueError(
                f"format: expected one whose clients load the experts of a {config.model_type}, got "
                f"{self.name}{f', which has {_one_of(known)}' if known else ''}"
            )
        return self

    def left_out(self, checkpoint: Checkpoint) -> dict[str, str]:
        """Return the tensors that a written checkpoint leaves out, with reasons: none by default."""
        del checkpoint
        return {}

    def kept(self, config: ModelConfig, name: str, tensor: StoredTensor) -> StoredTensor:
        """Return a copied tensor as it is read back: unchanged by default."""
        del config, name
        return tensor

    def opened_at(self, directory: Path) -> Path:
        """Return the path for `open_checkpoint` in a directory that a writer of this format filled."""
        return directory

    def is_uniform(self, asked: Mapping[str, LayerGrid]) -> bool:
        """Return whether layers on these grids must all be stored on the same one."""
        del asked
        return False

    def grids(
        self, weights: Mapping[str, TensorInfo], asked: Mapping[str, LayerGrid]
    ) -> dict[str, LayerGrid]:
        """Return the grid of each layer as it will be stored: the requested one if possible.

        Only lengths of groups that do not divide K, and dtypes of scales, may change. The result is a fixed
        point: requesting it returns it.

        Parameters
        ----------
        weights : mapping of str to TensorInfo
            Shape M, K and dtype of each layer's weight, by its name, such as
            ``"model.layers.0.mlp.down_proj"``.
        asked : mapping of str to LayerGrid
            Of the same layers.

        Raises
        ------
        ValueError
            If a layer cannot be stored on a grid like the requested one.
        """
        return self.stored_grids(weights, asked, uniform=self.is_uniform(asked))

    def stored_grids(
        self, weights: Mapping[str, TensorInfo], asked: Mapping[str, LayerGrid], *, uniform: bool
    ) -> dict[str, LayerGrid]:
        """Return the result of `grids`, with all layers on one grid if `uniform`."""
        for grid in dict.fromkeys(asked.values()):
            self.check(grid)
        for layer in asked:
            self.rules.check_shape(layer, weights[layer].shape)
        if uniform:
            _require_one_grid(asked)
        lengths: dict[str, int | None] = {}
        for size in dict.fromkeys(grid.group_size for grid in asked.values()):
            channels = {
                layer: weights[layer].shape[1]
                for layer, grid in asked.items()
                if grid.group_size == size
            }
            lengths |= group_lengths(
                channels,
                size,
                uniform=uniform,
                allowed=self.rules.group_sizes,
                whole_rows=self.rules.whole_rows,
            )
        return {
            layer: replace(
                grid,
                group_size=lengths[layer],
                find=grid.find if grid.find in self.finders else None,
                scale_dtype=self.rules.scale_dtype(weights[layer].dtype),
            )
            for layer, grid in asked.items()
        }

    @abc.abstractmethod
    def writer(
        self, directory: Path, checkpoint: Checkpoint, grids: Mapping[str, LayerGrid]
    ) -> ModelWriter:
        """Return the writer of a model, with layers on their `grids`, into an existing `directory`.

        Raises
        ------
        ValueError
            If the format cannot hold some part of the model.
        """

    @abc.abstractmethod
    def recognizes(self, checkpoint: Checkpoint) -> bool:
        """Return whether a checkpoint's configuration names this format for its layers."""

    @abc.abstractmethod
    def layers(self, checkpoint: Checkpoint) -> StoredLayers:
        """Return the quantized layers of a checkpoint that it recognizes; each is read on access.

        Raises
        ------
        ValueError
            If the configuration is not understood, or the tensors do not fit it.
        """


class StoredLayers(Mapping[str, QuantizedWeight]):
    """Quantized linear layers of a checkpoint, by name, such as ``"model.layers.0.self_attn.q_proj"``."""

    @abc.abstractmethod
    def __contains__(self, layer: object) -> bool:
        """Return whether there is such a layer, without reading it, which `Mapping` would do."""

    @abc.abstractmethod
    def shape(self, layer: str) -> tuple[int, int]:
        """M and K of a layer, without reading its codes."""

    @abc.abstractmethod
    def tensors(self, layer: str) -> tuple[str, ...]:
        """Names of the checkpoint's tensors that store the layer."""


class ModelWriter(abc.ABC):
    """Writer of one checkpoint, layer by layer; a context manager.

    Entering writes the metadata. Leaving without an exception copies the tensors of the source that no call
    passed, and closes the files.
    """

    planned_bytes: int
    """Bytes of all tensors that it will write; known on construction."""

    @abc.abstractmethod
    def add_layer(self, name: str, quantized: QuantizedWeight) -> int:
        """Write a layer of NumPy arrays on its grid; return the bytes that it takes."""

    @abc.abstractmethod
    def add(self, name: str, tensor: NDArray[Any]) -> None:
        """Write a tensor in place of the source's own, such as a norm that absorbed scales."""

    @abc.abstractmethod
    def __enter__(self) -> ModelWriter: ...

    @abc.abstractmethod
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def _require_one_grid(asked: Mapping[str, LayerGrid]) -> None:
    kinds = {(grid.bits, grid.group_size, grid.symmetric): name for name, grid in asked.items()}
    if len(kinds) > 1:
        one, other, *_ = kinds.values()
        raise ValueError(
            f"expected all layers on one grid in this format, got {one} on {asked[one]} and {other} on "
            f"{asked[other]}: mlx holds several, and compressed-tensors where all are symmetric"
        )


def _one_of(values: Sequence[int | str]) -> str:
    names = [str(value) for value in values]
    return " or ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
