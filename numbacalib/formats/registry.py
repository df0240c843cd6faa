"""Formats by name, grids that several share, and the format of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from numbacalib.formats.awq import Awq
from numbacalib.formats.compressed_fp4 import CompressedFp4
from numbacalib.formats.compressed_tensors import CompressedTensors
from numbacalib.formats.format import Format, LayerGrid, StoredLayers
from numbacalib.formats.gguf import GGUF_FORMATS
from numbacalib.formats.gptq import Gptq
from numbacalib.formats.mlx import Mlx
from numbacalib.formats.mlx_fp4 import MlxFp4
from numbacalib.models.checkpoint import TensorInfo
from numbacalib.models.fields import Fields
from numbacalib.models.gguf_file import is_gguf
from numbacalib.spec.small_floats import FP4

if TYPE_CHECKING:
    from numbacalib.models import Checkpoint

FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        *(CompressedTensors(), *map(CompressedFp4, FP4), Gptq(1), Gptq(2), Awq()),
        *(Mlx(), *map(MlxFp4, FP4), *GGUF_FORMATS),
    )
}
"""All formats of whole language models, by their names on the command line."""


def formats_named(names: Sequence[str]) -> list[Format]:
    """Return the formats of these names.

    Raises
    ------
    ValueError
        If there is no such format, or one is named twice.
    TypeError
        If `names` is one name.
    """
    if isinstance(names, str):
        raise TypeError("formats: expected a sequence of names, got one name")
    if not names:
        raise ValueError("formats: expected at least one name")
    for name in names:
        if name not in FORMATS:
            raise ValueError(f"format: expected {', '.join(FORMATS)}, got {name!r}")
        if names.count(name) > 1:
            raise ValueError(f"format: expected each once, got {name} twice")
    return [FORMATS[name] for name in names]


def common_grids(
    formats: Sequence[Format],
    weights: Mapping[str, TensorInfo],
    asked: Mapping[str, LayerGrid],
) -> dict[str, LayerGrid]:
    """Return grids that serve several formats with one solve: one format's grids that all others accept.

    Raises
    ------
    ValueError
        If a format cannot store the requested grids, or no such grids exist.
    """
    proposals = {each.name: each.grids(weights, asked) for each in formats}
    for grids in proposals.values():
        if all(_stores(each, weights, grids) for each in formats):
            return grids
    (one, first), (other, second), *_ = proposals.items()
    layer = next(layer for layer in first if first[layer] != second[layer])
    raise ValueError(
        f"format: expected formats whose grids agree, {layer} would have {first[layer]} in {one} and "
        f"{second[layer]} in {other}: quantize once for each"
    )


def _stores(
    form: Format, weights: Mapping[str, TensorInfo], grids: Mapping[str, LayerGrid]
) -> bool:
    """Return whether a format stores layers on exactly these grids."""
    try:
        return form.grids(weights, grids) == grids
    except ValueError:  # a grid that it does not store at all
        return False


def stored_format(checkpoint: Checkpoint) -> Format | None:
    """Return the format in which a checkpoint's layers are quantized; None if they are not.

    Raises
    ------
    ValueError
        If they are quantized in a format that is not supported.
    """
    for each in FORMATS.values():
        if each.recognizes(checkpoint):
            return each
    config = Fields(checkpoint.hf_config()).object("quantization_config", None)
    if config is None:
        return None
    methods = {method for each in FORMATS.values() for method in each.methods}
    error = config.error("quant_method", f"a supported one ({', '.join(sorted(methods))})")
    raise ValueError(f"{checkpoint.path}/config.json: {error}")


def stored_layers(checkpoint: Checkpoint) -> StoredLayers | None:
    """Return the quantized layers of a checkpoint, also of a GGUF file; None if it is not quantized.

    Raises
    ------
    ValueError
        If they are quantized in a format that is not supported.
    """
    form = stored_format(checkpoint)
    if form is None and is_gguf(checkpoint.path):
        form = GGUF_FORMATS[0]  # any of them reads all types
    return None if form is None else form.layers(checkpoint)
