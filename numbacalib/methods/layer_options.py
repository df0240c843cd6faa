"""Arguments of the methods, from a layer's settings."""

from __future__ import annotations

from typing import Any

from numbacalib.methods.layer import LayerSettings
from numbacalib.methods.shrinkage import distinct_tokens, shrinkage_for
from numbacalib.statistics import InputStatistics


def grid_options(settings: LayerSettings) -> dict[str, Any]:
    """Return the grid's settings, by the argument names of all methods."""
    return {
        "bits": settings.bits,
        "group_size": None if settings.method == "kmeans" else settings.group_size,
        "symmetric": settings.symmetric,
        "scale_dtype": settings.scale_dtype,
        "element": settings.element,
    }


def searched_options(settings: LayerSettings) -> dict[str, Any]:
    """Return the grid's settings, with the search of its ranges if there is one."""
    search = {} if settings.search is None else {"search": settings.search}
    return grid_options(settings) | search


def share_for(statistics: InputStatistics, settings: LayerSettings) -> float:
    """Return the share by which to shrink a Hessian."""
    if settings.shrinkage is None:
        damping = settings.percdamp, settings.damping_tries
        tokens = distinct_tokens(statistics.hessian, statistics.tokens, *damping)
        return shrinkage_for(statistics.hessian, tokens)
    return settings.shrinkage


def solver_options(settings: LayerSettings) -> dict[str, Any]:
    """Return the options that only GPTQ has, by its argument names, without the shrinkage."""
    return {
        "percdamp": settings.percdamp,
        "damping_tries": settings.damping_tries,
        "act_order": settings.act_order,
        "static_groups": settings.static_groups,
    }
