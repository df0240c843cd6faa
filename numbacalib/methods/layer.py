"""One layer by any method, with a report of how it went."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from numbacalib.methods.awq import awq_clip
from numbacalib.methods.block_scales import block_scales
from numbacalib.methods.codebook import CodebookWeight, codebook
from numbacalib.methods.gptq import LARGEST_DAMPING, gptq
from numbacalib.methods.loss import clipped_share
from numbacalib.methods.order import ACT_ORDERS
from numbacalib.methods.quantized_weight import QuantizedWeight
from numbacalib.methods.refit import refit_scales
from numbacalib.methods.rtn import rtn
from numbacalib.methods.shrinkage import shrinkage_for
from numbacalib.methods.target import output_loss, propagated_target
from numbacalib.ops.matrix import diagonal, from_host, to_host
from numbacalib.runtime import checks
from numbacalib.spec.block_grid import BlockGrid, BlockScales
from numbacalib.spec.range_search import RangeSearch
from numbacalib.statistics import InputStatistics

log = logging.getLogger("numbacalib")

LEAST_RANK = 0.25
"""Effective rank, as a share of the live channels, below which inputs are said to be too few: all layers
of SmolLM2-135M are above it with real text, and the first ones below it with a few words repeated."""

METHODS = ("gptq", "rtn", "kmeans")
RANGES = ("full", "mse", "weighted", "clip")
TARGETS = ("layerwise", "propagated")
COARSE_NORM = 3.0
"""Power of the range search at 2 bits, where both models of `benchmarks/quality.py` are nearer to the
original with it than with 2.4."""


@dataclass(frozen=True, kw_only=True)
class LayerSettings:
    """How to quantize a linear layer; the names are those of `gptq` and `rtn`."""

    method: str = "gptq"
    """"gptq", "rtn", or "kmeans" for `codebook`, whose codebooks are of whole rows: no group size,
    grid or scales then."""
    bits: int = 4
    group_size: int | None = 128
    """Input channels that share a scale; None is one scale a row."""
    symmetric: bool = False
    scale_dtype: DTypeLike = np.float16
    blocks: BlockGrid | None = None
    """A grid whose scales are quantized themselves, in blocks, in the place of bits, group_size, symmetric
    and scale_dtype: scales are searched by `block_scales`, with ranges "weighted" by importance."""
    ranges: str = "full"
    """What a group's grid spans: all its weights ("full"); the part with the least error ("mse"), or
    the least error weighted by each channel's mean square input or by an importance ("weighted"), by
    `RangeSearch`; for round-to-nearest also the part with the least error of the group's output
    ("clip", `awq_clip`). Codebooks weigh their errors with "weighted", and do not with "full"."""
    range_norm: float | None = None
    """Power of the errors that `RangeSearch` sums, with the ranges "mse" and "weighted". None is its own,
    but `COARSE_NORM` at 2 bits, where a large error costs more than its square says."""
    target: str = "layerwise"
    """What the codes are to stand for: the layer's weight ("layerwise"), or one that also repairs what the
    quantized layers before spoilt ("propagated", `propagated_target`), from statistics that have the
    original model's inputs."""
    target_strength: float = 0.25
    """Of the propagated target, 0 to 1. More fits the calibration text better, and other texts worse unless
    there is a lot of it."""
    refit: bool = False
    """Whether to solve for the scales once the codes are known: `refit_scales`."""
    percdamp: float = 0.01
    damping_tries: int = 5
    shrinkage: float | None = 0.0
    """None is what `shrinkage_for` finds."""
    act_order: str = "none"
    static_groups: bool = False

    def calibrated(self, importance: bool = False) -> bool:
        """Whether a layer needs statistics of its inputs, with or without an `importance` given."""
        weighted = self.ranges == "weighted" and not importance
        solved = self.refit or self.target == "propagated"
        return self.method == "gptq" or weighted or self.ranges == "clip" or solved

    @property
    def search(self) -> RangeSearch:
        """The search of ranges that are searched."""
        if self.range_norm is not None:
            return RangeSearch(norm=self.range_norm)
        return RangeSearch(norm=COARSE_NORM) if self.bits == 2 else RangeSearch()

    def check(self) -> None:
        """Check every setting for type and range, and that they go together.

        Raises
        ------
        ValueError, TypeError
            Naming the setting.
        """
        if self.method not in METHODS:
            raise ValueError(f"method: expected gptq, rtn or kmeans, got {self.method!r}")
        if self.ranges not in RANGES:
            raise ValueError(f"ranges: expected {', '.join(RANGES)}, got {self.ranges!r}")
        if self.method == "gptq" and self.ranges == "clip":
            raise ValueError("ranges: expected full, mse or weighted with gptq, got 'clip'")
        if self.method == "kmeans" and self.ranges not in ("full", "weighted"):
            raise ValueError(f"ranges: expected full or weighted with kmeans, got {self.ranges!r}")
        if self.target not in TARGETS:
            raise ValueError(f"target: expected {' or '.join(TARGETS)}, got {self.target!r}")
        if not 0 <= checks.finite_number("target_strength", self.target_strength) <= 1:
            raise ValueError(f"target_strength: expected 0 to 1, got {self.target_strength}")
        if self.blocks is not None:
            self._check_blocks()
        if self.method == "kmeans" and self.refit:
            raise ValueError("refit: expected False with kmeans, whose codebooks have no scales")
        if self.act_order not in ACT_ORDERS:
            raise ValueError(f"act_order: expected {', '.join(ACT_ORDERS)}, got {self.act_order!r}")
        checks.integer("bits", self.bits, 2, 8)
        if self.group_size is not None:
            checks.integer("group_size", self.group_size, 1, 1 << 31)
        if not 0 <= checks.finite_number("percdamp", self.percdamp) <= LARGEST_DAMPING:
            raise ValueError(f"percdamp: expected 0 to {LARGEST_DAMPING:g}, got {self.percdamp}")
        checks.integer("damping_tries", self.damping_tries, 1, 100)
        if self.shrinkage is not None:
            share("shrinkage", self.shrinkage)
        flag("symmetric", self.symmetric)
        flag("static_groups", self.static_groups)

    def _check_blocks(self) -> None:
        """Refuse what has no meaning where a format has fixed how scales are found."""
        for name, value, wanted in (
            ("method", self.method != "kmeans", "gptq or rtn"),
            ("ranges", self.ranges != "clip", "full, mse or weighted"),
            ("range_norm", self.range_norm is None, "none"),
            ("refit", not self.refit, "False"),
        ):
            if not value:
                got = getattr(self, name)
                raise ValueError(f"{name}: expected {wanted} with grids in blocks, got {got!r}")


def share(name: str, value: Any) -> None:
    """Check that a setting is a number from 0 to 1."""
    if not 0 <= checks.finite_number(name, value) <= 1:
        raise ValueError(f"{name}: expected 0 to 1, got {value}")


def flag(name: str, value: Any) -> None:
    """Check that a setting is True or False; any other object would count as one of them."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """How one linear layer went. What a method does not use or measure is None."""

    name: str
    method: str
    shape: tuple[int, int]
    """M, K."""
    bits: int
    group_size: int
    seconds: float
    clipped: float | None = None
    """Share of the weights that lie more than a step past the ends of their grid."""
    tokens: int | None = None
    full_rank: bool | None = None
    """Whether there were at least as many tokens as live channels."""
    dead: int | None = None
    """Channels that no token excited."""
    effective_rank: float | None = None
    """In how many independent channels the inputs vary as much as they do, at most K; by GPTQ alone."""
    loss: float | None = None
    """Squared error of the layer's outputs, `output_loss`: with a propagated target to those that the
    original layer has of its original inputs."""
    rtn_loss: float | None = None
    """The same for round-to-nearest on the full range."""
    shrinkage: float | None = None
    percdamp: float | None = None
    damping: float | None = None
    tries: int | None = None
    smallest_pivot: float | None = None
    stored_bytes: int | None = None
    """Bytes of the layer's packed tensors."""

    @property
    def fell_back(self) -> bool:
        """Whether the layer took more damping than was asked for."""
        return self.tries is not None and self.tries > 1

    @property
    def low_rank(self) -> bool:
        """Whether the inputs vary in too few directions for what the layer has, however many tokens."""
        live = self.shape[1] - (self.dead or 0)
        return self.effective_rank is not None and self.effective_rank < LEAST_RANK * live


def quantize_layer(
    name: str,
    weight: Any,
    statistics: InputStatistics | None,
    settings: LayerSettings,
    importance: Any = None,
) -> tuple[QuantizedWeight | CodebookWeight, LayerReport]:
    """Quantize one layer and measure it against round-to-nearest.

    Parameters
    ----------
    name : str
        For the report, for errors and for the log.
    weight : array [M, K], float16, bfloat16, float32 or float64
    statistics : InputStatistics or None
        Of the layer's inputs. None is for methods that need none, which then measure no loss.
    settings : LayerSettings
    importance : array [K] or [M, K], optional
        Weights of the errors with the ranges "weighted", instead of the mean squares of the inputs:
        Fisher information, or what an importance file has.

    Raises
    ------
    ValueError, TypeError, numpy.linalg.LinAlgError
        As `gptq` and `rtn`, with the layer's name in front.
    """
    begin = time.perf_counter()
    try:
        _check(statistics, settings, importance)
        quantized, measured = _quantize(name, weight, statistics, settings, importance)
    except (ValueError, TypeError, np.linalg.LinAlgError) as error:
        raise type(error)(f"{name}: {error}") from error
    report = LayerReport(
        name=name,
        method=settings.method,
        shape=(weight.shape[0], weight.shape[1]),
        bits=quantized.bits,
        group_size=quantized.group_size,
        seconds=time.perf_counter() - begin,
        **measured,
    )
    return quantized, report


def solve(
    weights: Mapping[str, Any],
    statistics: Mapping[str, InputStatistics],
    settings: LayerSettings,
    importance: Mapping[str, Any] | None = None,
) -> Iterator[tuple[QuantizedWeight | CodebookWeight, LayerReport]]:
    """Quantize named layers from their weights and statistics alone, one after the other.

    With `load_weights` and `load_statistics` this needs neither the model nor the text again,
    whatever the bits, groups and method. `importance` is each layer's, for `quantize_layer`.

    Raises
    ------
    ValueError
        If a layer has no statistics, or no importance where others have, before any work.
    """
    given = {"statistics": statistics} | ({} if importance is None else {"importance": importance})
    for argument, layers in given.items():
        if missing := [name for name in weights if name not in layers]:
            raise ValueError(f"{argument}: expected one for each weight, none for {missing[0]}")
    for name, weight in weights.items():
        weights_of_errors = None if importance is None else importance[name]
        yield quantize_layer(name, weight, statistics[name], settings, weights_of_errors)


def _check(statistics: InputStatistics | None, settings: LayerSettings, importance: Any) -> None:
    settings.check()
    if importance is not None and settings.ranges != "weighted":
        raise ValueError(f"importance: expected None with ranges {settings.ranges!r}")
    if settings.calibrated(importance is not None):
        if statistics is None:
            raise ValueError("statistics: expected the layer's inputs to be calibrated, got None")
        if statistics.tokens == 0:
            raise ValueError("statistics: expected at least one token")
    if settings.target == "propagated" and (statistics is None or statistics.cross is None):
        raise ValueError("statistics: expected the original model's inputs too for this target")


def _quantize(
    name: str,
    weight: Any,
    statistics: InputStatistics | None,
    settings: LayerSettings,
    importance: Any,
) -> tuple[QuantizedWeight | CodebookWeight, dict[str, Any]]:
    """Quantize, and return what was measured by the report's names."""
    plain: dict[str, Any] = {
        "bits": settings.bits,
        "group_size": None if settings.method == "kmeans" else settings.group_size,
        "symmetric": settings.symmetric,
        "scale_dtype": settings.scale_dtype,
    }
    options = dict(plain)
    if settings.ranges == "weighted" and importance is None and statistics is not None:
        importance = statistics.mean_square
    if settings.blocks is None:
        if settings.ranges in ("mse", "weighted"):
            options["search"] = settings.search
        if settings.ranges == "weighted":
            options["importance"] = importance

    target = weight
    if statistics is not None and settings.target == "propagated":
        target = propagated_target(
            weight,
            statistics.hessian,
            statistics.cross,
            statistics.residual,
            strength=settings.target_strength,
            percdamp=settings.percdamp,
            damping_tries=settings.damping_tries,
        )
    stored = None
    if settings.blocks is not None:
        stored = block_scales(target, settings.blocks, importance)
        options |= _fixed(stored, settings.blocks, target)
    quantized: QuantizedWeight | CodebookWeight
    measured: dict[str, Any] = {}
    if settings.method == "kmeans":
        quantized = codebook(target, bits=settings.bits, importance=importance)
    elif statistics is not None and settings.method == "gptq":
        quantized, measured = _gptq(name, target, statistics, settings, options)
    elif statistics is not None and settings.ranges == "clip":
        quantized = awq_clip(target, statistics.hessian, **options)
    else:
        quantized = rtn(target, **options)
    if isinstance(quantized, QuantizedWeight):
        quantized = replace(quantized, blocks=stored)
        if settings.refit and statistics is not None:
            quantized = refit_scales(target, quantized, statistics.hessian)
        measured["clipped"] = clipped_share(target, quantized)
    if statistics is not None:
        hessian = statistics.hessian
        dead = int((to_host(diagonal(hessian)) == 0).sum())
        measured |= {
            "tokens": statistics.tokens,
            "full_rank": statistics.tokens >= len(hessian) - dead,
            "dead": dead,
            "loss": output_loss(weight, quantized, statistics),
            "rtn_loss": output_loss(weight, rtn(weight, **plain), statistics),
        }
    return quantized, measured


def _fixed(stored: BlockScales, grid: BlockGrid, like: Any) -> dict[str, Any]:
    """Options of `gptq` and `rtn` for grids that a search in blocks found."""
    scales, zeros = stored.grids(grid)
    options = {
        "bits": grid.bits,
        "group_size": grid.group_size,
        "symmetric": not grid.minima,
        "scale_dtype": np.float32,
        "scales": from_host(scales, like),
    }
    return options | ({"zeros": from_host(zeros, like)} if grid.minima else {})


def _gptq(
    name: str,
    weight: Any,
    statistics: InputStatistics,
    settings: LayerSettings,
    options: Mapping[str, Any],
) -> tuple[QuantizedWeight, dict[str, Any]]:
    """Quantize by GPTQ; `options` are the grid's and the search's."""
    shrinkage = settings.shrinkage
    if shrinkage is None:
        shrinkage = shrinkage_for(statistics.hessian, statistics.tokens)
    quantized, report = gptq(
        weight,
        statistics.hessian,
        percdamp=settings.percdamp,
        damping_tries=settings.damping_tries,
        shrinkage=shrinkage,
        act_order=settings.act_order,
        static_groups=settings.static_groups,
        **options,
    )
    if report.tries > 1:
        log.warning(
            "%s: the Hessian was not positive definite with percdamp %g; %g was enough",
            name,
            settings.percdamp,
            report.percdamp,
        )
    return quantized, {
        "shrinkage": shrinkage,
        "percdamp": report.percdamp,
        "damping": report.damping,
        "tries": report.tries,
        "smallest_pivot": report.smallest_pivot,
        "effective_rank": report.effective_rank,
    }
