"""Tensors that hold one layer of all of a block's experts, split into a tensor for each expert.

Transformers holds experts like this in memory, and files of some architectures do too: gates and ups in one
tensor, concatenated or interleaved, as ``[E, M, K]`` or transposed; or in MXFP4, as blocks of codes with a
scale each (`numbacalib.models.packed_sources`). Runtimes read quantized experts as one module each, so each
expert has its own tensor names here, whatever the file.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from numpy.typing import NDArray

from numbacalib.models.config import ModelConfig
from numbacalib.models.description import ExpertNames
from numbacalib.models.layer_tensors import layer_of
from numbacalib.models.mixture import Mixture
from numbacalib.models.safetensors_file import TensorEntry

__all__ = ["View", "expert_entries"]


class View(NamedTuple):
    """The rows of a stored tensor, or of its transpose, that make up one of our tensors."""

    transposed: bool
    rows: slice

    def of(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Return the tensor as a view of the stored one."""
        return (stored.T if self.transposed else stored)[self.rows]

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the tensor."""
        first, *rest = reversed(stored) if self.transposed else stored
        return len(range(*self.rows.indices(first))), *rest


_ENDINGS = {
    "": "weight",
    "_bias": "bias",
    "_blocks": "weight_blocks",
    "_scales": "weight_scales",
}
"""Suffixes of the names of fused tensors, and of those of their parts."""

Entries = dict[str, tuple[TensorEntry, View]]


def expert_entries(config: ModelConfig, name: str, entry: TensorEntry) -> Entries | None:
    """Locate each expert's tensors in a fused one, by name; None if the tensor is not fused.

    Parameters
    ----------
    config : ModelConfig
    name : str
        Name of the tensor, as `canonical_name` returns it.
    entry : TensorEntry

    Raises
    ------
    ValueError
        If the tensor's shape does not match the configuration; names the tensor.
    """
    layer, names = layer_of(name), config.architecture.experts
    if layer is None or names is None or layer[0] >= config.num_layers:
        return None
    index, tensor = layer
    mixture = config.mixture_of(index)
    fused = _Fused.of(names, tensor)
    if mixture is None or fused is None:
        return None
    size = mixture.input_size(config.hidden_size)
    expected = fused.shape(mixture, size)
    if names.either_way and entry.shape != expected:
        fused = fused._replace(names=replace(names, transposed=True))
        expected = fused.shape(mixture, size)
    if entry.shape != expected:
        raise ValueError(f"{name}: expected shape {expected}, got {entry.shape}")
    prefix = f"model.layers.{index}.{names.each}"
    return fused.entries(prefix, entry)


class _Fused(NamedTuple):
    """One kind of fused tensor."""

    names: ExpertNames
    roles: tuple[str, ...]
    ending: str
    """Suffix of the names of its parts."""

    @classmethod
    def of(cls, names: ExpertNames, tensor: str) -> _Fused | None:
        """Return the kind of a tensor by its name in the block; None if it is not fused."""
        gate_up = names.fused_gate_up or f"{names.each}.gate_up_proj"
        down = names.fused_down or f"{names.each}.down_proj"
        kinds = {
            fused + own: cls(names, roles, ending)
            for fused, roles in ((gate_up, ("gate", "up")), (down, ("down",)))
            for own, ending in _ENDINGS.items()
        }
        return kinds.get(tensor)

    @property
    def transposed(self) -> bool:
        return self.names.transposed and self.ending == "weight"

    def shape(self, mixture: Mixture, hidden: int) -> tuple[int, ...]:
        """Shape of the tensor."""
        rows, columns = (
            (2 * mixture.size, hidden) if len(self.roles) > 1 else (hidden, mixture.size)
        )
        shapes = {
            "weight": (columns, rows) if self.transposed else (rows, columns),
            "bias": (rows,),
            "weight_blocks": (rows, columns // 32, 16),
            "weight_scales": (rows, columns // 32),
        }
        return mixture.experts, *shapes[self.ending]

    def entries(self, prefix: str, entry: TensorEntry) -> Entries:
        """Locate the tensors of each expert."""
        count, *shape = entry.shape
        found = {}
        for expert in range(count):
            length = entry.length // count
            own = entry._replace(
                shape=tuple(shape), begin=entry.begin + expert * length, length=length
            )
            for number, role in enumerate(self.roles):
                tensor = f"{prefix}.{expert}.{getattr(self.names, role)}.{self.ending}"
                found[tensor] = self._part(own, number)
        return found

    def _part(self, own: TensorEntry, number: int) -> tuple[TensorEntry, View]:
        """Locate one role's part of an expert, as a byte range if its rows are contiguous."""
        count = len(self.roles)
        if count > 1 and self.names.interleaved:
            return own, View(self.transposed, slice(number, None, count))
        rows = own.shape[-1 if self.transposed else 0] // count
        if self.transposed:
            return own, View(True, slice(number * rows, (number + 1) * rows))
        shape, length = (rows, *own.shape[1:]), own.length // count
        part = own._replace(shape=shape, begin=own.begin + number * length, length=length)
        return part, View(False, slice(None))
