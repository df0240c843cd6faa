"""Refits and passes over the codes of a layer, once a method has chosen them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from numbacalib.methods.descent import descend_codes
from numbacalib.methods.layer import LayerSettings
from numbacalib.methods.quantized_weight import QuantizedWeight
from numbacalib.methods.refit import refit_scales
from numbacalib.methods.settings import Refit
from numbacalib.methods.target import smoothed
from numbacalib.ops.matrix import cast, joined_rows, split_rows

_ARRAYS = "codes", "scales", "zeros"


def improved(
    targets: Sequence[Any], found: Sequence[Any], hessian: Any, settings: LayerSettings
) -> list[Any]:
    """Refit grids and choose codes again, by the settings; codebooks are returned unchanged.

    The layers share one input and are processed together, since rows are independent.
    """
    if not settings.refits and not settings.descents:
        return list(found)
    if len({target.dtype for target in targets}) > 1:
        pairs = zip(targets, found, strict=True)
        return [_improved(target, own, hessian, settings) for target, own in pairs]
    if len(found) == 1:
        return [_improved(targets[0], found[0], hessian, settings)]
    arrays = ([getattr(own, name) for own in found] for name in _ARRAYS)
    together = replace(found[0], **dict(zip(_ARRAYS, map(joined_rows, arrays), strict=True)))
    better = _improved(joined_rows(targets), together, hessian, settings)
    rows = [len(own.codes) for own in found]
    parts = split_rows([getattr(better, name) for name in _ARRAYS], rows)
    return [
        replace(own, **dict(zip(_ARRAYS, part, strict=True)))
        for own, part in zip(found, parts, strict=True)
    ]


def _improved(
    target: Any, quantized: QuantizedWeight, hessian: Any, settings: LayerSettings
) -> QuantizedWeight:
    """Improve one layer.

    Codes are chosen with the Hessian that GPTQ had, shrunk and damped; grids, which have few parameters,
    with the original one. More refits, one after each pass, hardly reduce the loss.
    """
    refit = settings.refit_of_grid if settings.refits else None
    quantized = _refitted(target, quantized, hessian, refit)
    if not settings.descents:
        return quantized
    assert settings.shrinkage is not None  # its caller found it
    smooth = smoothed(hessian, settings.shrinkage)
    percdamp = settings.percdamp if quantized.report is None else quantized.report.percdamp
    given = target, quantized, smooth
    quantized = descend_codes(*given, passes=settings.descents, percdamp=percdamp)
    return _refitted(target, quantized, hessian, refit)


def _refitted(
    target: Any, quantized: QuantizedWeight, hessian: Any, refit: Refit | None
) -> QuantizedWeight:
    """Refit the parts of the grid that a format lets change; None if there are none."""
    if refit is None:
        return quantized
    own = quantized.scales.dtype
    stored = replace(quantized, scales=cast(quantized.scales, refit.dtype or own))
    zeros, least = refit.zeros, refit.least_zero
    found = refit_scales(target, stored, hessian, zeros=zeros, least_zero=least)
    return replace(found, scales=cast(found.scales, own))
