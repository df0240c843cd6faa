"""Bits and groups of a model's layers within a size, by one more pass of the text through the original."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.format import Format, LayerGrid
from numbacalib.formats.group_lengths import group_lengths
from numbacalib.formats.registry import common_grids
from numbacalib.formats.safetensors_format import SafetensorsFormat
from numbacalib.methods.layer_options import share_for
from numbacalib.methods.widths import BITS, Width, chosen_widths, expected_losses
from numbacalib.models import Decoder
from numbacalib.models.checkpoint import TensorInfo
from numbacalib.quantizer.calibration import SILENT
from numbacalib.quantizer.effects import Effects
from numbacalib.quantizer.progress import Progress
from numbacalib.quantizer.settings import Settings
from numbacalib.quantizer.stages import run_stages

GROUPS = (32, 64, 128)
"""Group sizes to try, where they divide K."""

Losses = Mapping[str, Mapping[tuple[int, int], float]]
"""Expected changes of the head's inputs, by layer and by bits and group size."""


def check_formats(formats: Sequence[Format]) -> None:
    """Refuse formats whose bits and groups cannot be chosen.

    Raises
    ------
    ValueError
    """
    for each in formats:
        if not isinstance(each, SafetensorsFormat):
            raise ValueError(f"size: expected a format whose bits can be chosen, got {each.name}")


def grids_within(
    decoder: Decoder,
    tokens: NDArray[np.integer],
    settings: Settings,
    formats: Sequence[Format],
    weights: Mapping[str, TensorInfo],
    asked: Mapping[str, LayerGrid],
) -> dict[str, LayerGrid]:
    """Choose bits and groups of the layers for the least loss within `settings.size` bits per weight.

    Each layer gets its own grid if the formats can mix grids; otherwise all share a group size or a grid.

    Parameters
    ----------
    decoder : Decoder
        Of the original.
    tokens : integer array [S, T]
    settings : Settings
    formats : sequence of Format
    weights : mapping of str to TensorInfo
        Of the layers in blocks.
    asked : mapping of str to LayerGrid
        Their grids without a size.

    Raises
    ------
    ValueError
        If no grids that the formats can hold are that small.
    """
    assert settings.size is not None
    losses = _losses(decoder, tokens, settings, weights)
    budget = settings.size * sum(int(np.prod(info.shape)) for info in weights.values())
    found: list[tuple[float, dict[str, LayerGrid]]] = []
    for mixed, candidates in _kinds(losses):
        options = {
            layer: _stored(layer, candidates[layer], formats, weights, asked) for layer in weights
        }
        if not all(options.values()):
            continue
        try:
            chosen = chosen_widths(options, budget)
            grids = {
                layer: replace(asked[layer], bits=width.bits, group_size=width.group_size)
                for layer, width in chosen.items()
            }
            held = common_grids(formats, weights, grids)
        except ValueError:
            continue  # too large, or no file holds such layers together
        if any(_kind(held[layer]) != _kind(grid) for layer, grid in grids.items()):
            continue
        loss = sum(width.loss for width in chosen.values())
        found.append((loss, grids))
        if mixed:
            break
    if not found:
        raise ValueError(
            f"size: expected bits a weight that {', '.join(each.name for each in formats)} can hold, "
            f"got {settings.size:g}"
        )
    return min(found, key=lambda pair: pair[0])[1]


def _kind(grid: LayerGrid) -> tuple[int, int | None]:
    return grid.bits, grid.group_size


def _losses(
    decoder: Decoder,
    tokens: NDArray[np.integer],
    settings: Settings,
    weights: Mapping[str, TensorInfo],
) -> dict[str, dict[tuple[int, int], float]]:
    """Expected squared changes of the head's inputs due to each layer.

    Each is the layer's expected loss on the original model's activations, times the measured effect of its
    errors: see `Effects`.
    """
    hidden = decoder.states(tokens)
    found: dict[str, dict[tuple[int, int], float]] = {}
    effects = Effects(decoder, tokens)
    layers = decoder.config.num_layers
    with Progress(layers) as progress, np.errstate(**SILENT):
        for index in range(layers):
            progress.show(f"block {index + 1} of {layers}: choosing bits")
            block = decoder.block(index)
            for stage, statistics in run_stages(block, decoder, hidden):
                own = {
                    f"{block.name}.{kind}": block.linears[kind]
                    for kind in stage
                    if f"{block.name}.{kind}" in weights
                }
                hessian = statistics.hessian
                sizes = group_sizes(len(hessian))
                solved = replace(settings, shrinkage=share_for(statistics, settings))
                found |= expected_losses(own, hessian, sizes, solved)
                grid: dict[str, Any] = {"group_size": sizes[0], "symmetric": settings.symmetric}
                effects.add_layers(block, own, hessian, **grid)
            effects.run(block)
            progress.step()
    by_layer = effects.by_layer()
    return {
        layer: {grid: loss * by_layer[layer] for grid, loss in losses.items()}
        for layer, losses in found.items()
    }


def group_sizes(channels: int) -> list[int]:
    """Group sizes of a layer with this many channels; if none of `GROUPS` divides them, one that does."""
    sizes = [size for size in GROUPS if channels % size == 0]
    return sizes or [group_lengths({"": channels}, GROUPS[0], uniform=False)[""] or channels]


def _kinds(losses: Losses) -> Iterator[tuple[bool, Losses]]:
    """Losses to choose from: all, then those of one group size for all layers, then of one grid."""
    yield True, losses
    for size in GROUPS:
        of_size = {layer: _of_size(own, size) for layer, own in losses.items()}
        yield False, of_size
        for bits in BITS:
            yield (
                False,
                {
                    layer: {key: loss for key, loss in own.items() if key[0] == bits}
                    for layer, own in of_size.items()
                },
            )


def _of_size(losses: Mapping[tuple[int, int], float], size: int) -> Mapping[tuple[int, int], float]:
    """Losses of one group size; all of them for a layer that only has another size."""
    return {key: loss for key, loss in losses.items() if key[1] == size} or losses


def _stored(
    layer: str,
    losses: Mapping[tuple[int, int], float],
    formats: Sequence[Format],
    weights: Mapping[str, TensorInfo],
    asked: Mapping[str, LayerGrid],
) -> list[Width]:
    """Widths of a layer that all formats can hold, with their stored bits in the first format."""
    first: Any = formats[0]
    widths = []
    for (bits, size), loss in losses.items():
        grid = replace(asked[layer], bits=bits, group_size=size)
        if all(_holds(each, grid) for each in formats):
            stored = 8 * first.packed_bytes(weights[layer].shape, grid)
            widths.append(Width(bits, size, stored, loss))
    return widths


def _holds(form: Format, grid: LayerGrid) -> bool:
    try:
        form.check(grid)
    except ValueError:
        return False
    return True
