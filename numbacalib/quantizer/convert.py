"""Conversion of a quantized checkpoint to another format, without loss."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from numbacalib.formats.dequantized import DequantizedCheckpoint
from numbacalib.formats.format import Format, LayerGrid, StoredLayers
from numbacalib.formats.output_directory import new_directory, require_new_directory
from numbacalib.formats.registry import formats_named, stored_layers
from numbacalib.methods import QuantizedWeight
from numbacalib.models import open_checkpoint
from numbacalib.models.checkpoint import TensorInfo
from numbacalib.quantizer.outer import is_outer
from numbacalib.quantizer.preflight import require_space
from numbacalib.quantizer.progress import Progress

log = logging.getLogger("numbacalib")

LENGTHS = (1024, 512, 256, 128, 64, 32, 16)
"""Group lengths into which longer groups may be cut, where a format does not hold these."""


def convert(
    model: str | Path, output: str | Path, *, to: str, clean: bool = False
) -> dict[str, LayerGrid]:
    """Write a quantized checkpoint in another format, with bit-identical weights.

    Codes, scales and zeros are those of the source; groups that are too long for the format are cut into
    shorter ones with equal scales. Quantized embeddings and heads are written as float32 where the format
    does not hold them, or not beside the layers of blocks. The output is read back and compared.

    Parameters
    ----------
    model : path
        A quantized checkpoint: a Hugging Face directory in one of `numbacalib.formats.FORMATS`, or a GGUF
        file.
    output : path
        Absent, or an empty directory. It appears when it is complete.
    to : str
        Name of one of `numbacalib.formats.FORMATS`.
    clean : bool, default False
        Remove leftovers of killed runs to the same output.

    Returns
    -------
    dict of str to LayerGrid
        The grid of each layer as written.

    Raises
    ------
    ValueError, TypeError, OSError
        If the source is not quantized, or the format cannot hold it without loss; nothing is written then.

    Examples
    --------
    >>> from numbacalib.quantizer import Settings, convert, quantize
    >>> settings = Settings(method="rtn", bits=4, group_size=32, symmetric=True)
    >>> _ = quantize("model", "quantized", settings=settings, formats=["gptq"])
    >>> grids = convert("quantized", "converted", to="mlx")
    >>> grids["model.layers.0.mlp.down_proj"].bits
    4
    """
    (form,) = formats_named([to])
    require_new_directory(Path(os.path.realpath(output)))
    checkpoint = open_checkpoint(model)
    stored = stored_layers(checkpoint)
    if stored is None:
        raise ValueError(f"{model}: expected a quantized checkpoint, got an unquantized one")
    held = [layer for layer in stored if form.holds(layer)]
    if not held:
        raise ValueError(f"{model}: expected quantized layers that {form.name} holds, found none")
    with Progress(2 * len(held)) as progress:
        own = {}
        for layer in held:
            own[layer] = _grid_of(stored[layer])
            progress.step()
        grids = _most_grids(form.of_model(checkpoint.config), own, stored)
        for layer in stored:
            if layer not in grids:
                log.warning("%s: written as float32, since %s does not hold it", layer, form.name)
        view = DequantizedCheckpoint(checkpoint, stored)
        with new_directory(output, clean=clean) as directory:
            writer = form.writer(directory, view, grids)
            require_space({directory: writer.planned_bytes})
            with writer:
                for layer, weight in _cut_layers(stored, grids):
                    try:
                        writer.add_layer(layer, weight)
                    except ValueError as error:
                        raise ValueError(f"{layer}: {form.name} cannot hold it: {error}") from None
                    progress.step()
            _require_same(form, directory, stored, grids)
    return grids


def _grid_of(weight: QuantizedWeight) -> LayerGrid:
    """Return the grid that a layer is on."""
    channels = weight.codes.shape[1]
    return LayerGrid(
        weight.bits,
        None if weight.group_size == channels else weight.group_size,
        weight.symmetric,
        weight.scales.dtype,
        g_idx=weight.g_idx is not None,
        element=weight.element,
    )


def _most_grids(
    form: Format, own: Mapping[str, LayerGrid], stored: StoredLayers
) -> dict[str, LayerGrid]:
    """Return `_held_grids` of all layers or, if these do not fit together, of those in blocks alone."""
    try:
        return _held_grids(form, own, stored)
    except ValueError:
        inner = {layer: grid for layer, grid in own.items() if not is_outer(layer)}
        if len(inner) in (0, len(own)):
            raise
        return _held_grids(form, inner, stored)


def _held_grids(
    form: Format, own: Mapping[str, LayerGrid], stored: StoredLayers
) -> dict[str, LayerGrid]:
    """Return grids of the format with the same values, groups as they are or cut shorter.

    Raises
    ------
    ValueError
        If there are none, with the reason.
    """
    weights = {layer: TensorInfo(stored.shape(layer), own[layer].scale_dtype) for layer in own}
    reasons = []
    for length in (None, *LENGTHS):
        asked = {layer: _cut(grid, weights[layer].shape[1], length) for layer, grid in own.items()}
        try:
            grids = form.grids(weights, asked)
        except ValueError as error:
            reasons.append(str(error))
            continue
        different = [layer for layer in own if not _same_values(asked[layer], grids[layer])]
        if not different:
            return grids
        layer = different[0]
        reasons.append(f"{layer}: is on {own[layer]}, and would be on {grids[layer]}")
    raise ValueError(f"{form.name} cannot hold it without loss: {reasons[0]}")


def _cut(grid: LayerGrid, channels: int, length: int | None) -> LayerGrid:
    """Return the same grid with groups of `length`, if groups are contiguous and `length` divides them.

    A whole row that is not longer stays one group.
    """
    size = grid.group_size or channels
    if length is None or grid.g_idx or size % min(size, length):
        return grid
    return replace(grid, group_size=min(size, length))


def _same_values(one: LayerGrid, other: LayerGrid) -> bool:
    """Return whether scales and codes of one grid are valid on the other unchanged."""
    return replace(one, find=None) == replace(other, find=None)


def _cut_layers(
    stored: StoredLayers, grids: Mapping[str, LayerGrid]
) -> Iterator[tuple[str, QuantizedWeight]]:
    """Yield the layers with their groups cut to those of the grids."""
    for layer, grid in grids.items():
        weight = stored[layer]
        channels = weight.codes.shape[1]
        parts = weight.group_size // (grid.group_size or channels)
        yield (
            layer,
            replace(
                weight,
                scales=np.repeat(weight.scales, parts, axis=1),
                zeros=np.repeat(weight.zeros, parts, axis=1),
                group_size=weight.group_size // parts,
            ),
        )


def _require_same(
    form: Format, directory: Path, stored: StoredLayers, grids: Mapping[str, LayerGrid]
) -> None:
    """Read the output back and compare its weights with the source's.

    Raises
    ------
    ValueError
        If one differs.
    """
    written = stored_layers(open_checkpoint(form.opened_at(directory)))
    assert written is not None  # it was written as quantized
    for layer in grids:
        if not np.array_equal(written[layer].dequantize(), stored[layer].dequantize()):
            raise ValueError(f"{layer}: {form.name} cannot hold it without loss")
