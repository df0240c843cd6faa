"""Settings of a layer's quantization, and the report about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from numbacalib.methods.settings import GridFinder, Refit, check_element
from numbacalib.methods.shrinkage import LEAST_RANK
from numbacalib.methods.solver import Solver
from numbacalib.runtime import checks
from numbacalib.spec.grid import INTEGER
from numbacalib.spec.range_search import RangeSearch

METHODS = ("gptq", "rtn", "kmeans")
RANGES = ("full", "mse", "weighted", "clip")
TARGETS = ("layerwise", "propagated")
PASSES = 3
"""Passes over the codes with a propagated target: more hardly reduce the loss."""
COARSE_NORM = 3.0
"""Power of the range search at 2 bits: both models on which it was measured there were nearer to the
original than with 2.4."""


@dataclass(frozen=True, kw_only=True)
class LayerSettings:
    """Settings of a linear layer's quantization; the names are those of `gptq` and `rtn`."""

    method: str = "gptq"
    """"gptq", "rtn", or "kmeans" for `codebook`, whose codebooks are for whole rows, without group size,
    grid or scales."""
    bits: int = 4
    group_size: int | None = 128
    """Input channels that share a scale; None is one scale a row."""
    symmetric: bool = False
    element: str = INTEGER
    """Kind of the codes: "int", or "e2m1" for floating-point numbers of 4 bits on the symmetric grid."""
    scale_dtype: DTypeLike = np.float16
    find_grid: GridFinder | None = None
    """Function that finds scales and zeros as a format stores them, before codes are chosen; by default
    they are those of the integer grid, with scales in `scale_dtype`."""
    ranges: str = "full"
    """Span of a group's grid: all its weights ("full"); the part with the least error ("mse"), or
    the least error weighted by each channel's mean square input or by an importance ("weighted"), by
    `RangeSearch`; for round-to-nearest also the part with the least error of the group's output
    ("clip", `awq_clip`). Codebooks weigh their errors with "weighted", and do not with "full"."""
    full_range: bool | None = False
    """True to let the largest weight of a symmetric group fall on the longer side of its grid, by scales of
    either sign, with any ranges but "clip". None is True with gptq, if no format fixes the grid."""
    range_norm: float | None = None
    """Power of the errors that `RangeSearch` sums, with the ranges "mse" and "weighted". None is its
    default, but `COARSE_NORM` at 2 bits, where a large error costs more than its square."""
    target: str = "layerwise"
    """Weight that the codes stand for: the layer's own ("layerwise"), or one that also compensates errors
    of the quantized layers before ("propagated", `propagated_target`), from statistics that include the
    original model's inputs."""
    target_strength: float = 0.375
    """Strength of the propagated target, 0 to 1. More fits the calibration text better, and other texts
    worse unless there is a lot of it."""
    refit: bool | None = False
    """True to solve for the scales, and the zeros, once the codes are known: `refit_scales`. None is True
    with a propagated target, if the format lets them change."""
    passes: int | None = 0
    """Passes in which each code is chosen again while the others of its row stay, `descend_codes`, once
    all are known; refits come before and after. None is `PASSES` with a propagated target, but 0 for
    codebooks and floating-point codes."""
    percdamp: float = 0.01
    damping_tries: int = 5
    shrinkage: float | None = 0.0
    """None is the share that `shrinkage_for` finds."""
    act_order: str = "none"
    static_groups: bool = False

    def calibrated(self, importance: bool = False) -> bool:
        """Return whether a layer needs statistics of its inputs; `importance` says if one is given."""
        weighted = self.ranges == "weighted" and not importance
        solved = bool(self.refit or self.passes) or self.target == "propagated"
        return self.method == "gptq" or weighted or self.ranges == "clip" or solved

    @property
    def refits(self) -> bool:
        """True if scales are solved for once the codes are known."""
        if self.refit is not None:
            return self.refit
        free = self.refit_of_grid is not None and self.method != "kmeans"
        return free and self.target == "propagated"

    @property
    def descents(self) -> int:
        """Passes over the codes."""
        if self.passes is not None:
            return self.passes
        integers = self.element == INTEGER and self.method != "kmeans"
        return PASSES if integers and self.target == "propagated" else 0

    @property
    def spans_longer_side(self) -> bool:
        """True if a symmetric grid has its full range."""
        if self.full_range is not None:
            return self.full_range
        free = self.find_grid is None and self.element == INTEGER
        return self.symmetric and free and self.method == "gptq"

    @property
    def refit_of_grid(self) -> Refit | None:
        """Parts of the grid that a refit may change; None if the format fixes it."""
        if self.element != INTEGER:
            return None
        if self.find_grid is not None:
            return self.find_grid.refit
        return Refit("kept" if self.symmetric else "integers")

    @property
    def search(self) -> RangeSearch | None:
        """The search of a group's range; None if the grid spans all its weights."""
        found = RangeSearch(full_range=self.spans_longer_side)
        if self.ranges not in ("mse", "weighted"):
            return found._replace(points=1) if self.spans_longer_side else None
        if self.range_norm is not None:
            return found._replace(norm=self.range_norm)
        return found._replace(norm=COARSE_NORM) if self.bits == 2 else found

    def check(self) -> None:
        """Check the type and range of every setting, and that the settings fit together.

        Raises
        ------
        ValueError, TypeError
            Naming the setting.
        """
        checks.one_of("method", self.method, METHODS)
        checks.one_of("ranges", self.ranges, RANGES)
        if self.method == "gptq" and self.ranges == "clip":
            raise ValueError("ranges: expected full, mse or weighted with gptq, got 'clip'")
        if self.method == "kmeans" and self.ranges not in ("full", "weighted"):
            raise ValueError(f"ranges: expected full or weighted with kmeans, got {self.ranges!r}")
        checks.one_of("target", self.target, TARGETS)
        checks.share("target_strength", self.target_strength)
        if self.method == "kmeans" and self.refit:
            raise ValueError("refit: expected False with kmeans, whose codebooks have no scales")
        checks.integer("bits", self.bits, 2, 8)
        if self.group_size is not None:
            checks.integer("group_size", self.group_size, 1, 1 << 31)
        checks.boolean("symmetric", self.symmetric)
        if self.full_range is not None:
            checks.boolean("full_range", self.full_range)
        if self.full_range and not self.symmetric:
            raise ValueError("full_range: expected False without symmetric")
        if self.full_range and (self.ranges == "clip" or self.method == "kmeans"):
            raise ValueError("full_range: expected False with the ranges clip and with kmeans")
        if self.passes is not None:
            checks.integer("passes", self.passes, 0, 1000)
        if self.passes and (self.method == "kmeans" or self.element != INTEGER):
            raise ValueError("passes: expected 0 with kmeans and floating-point codes")
        check_element(self.element, self.bits, self.symmetric)
        if self.element != INTEGER and (self.refit or self.full_range or self.method == "kmeans"):
            raise ValueError(
                f"element: expected int with refit, full_range and kmeans, got {self.element!r}"
            )
        shrinkage = 0.0 if self.shrinkage is None else self.shrinkage
        order = self.act_order, self.static_groups
        Solver(self.percdamp, self.damping_tries, shrinkage, *order)  # checks them
        if self.find_grid is not None:
            self.check_fixed()

    def check_fixed(self) -> None:
        """Check that no setting changes the scales of a grid that a format fixes before codes are chosen.

        Raises
        ------
        ValueError
            Naming the setting that would.
        """
        if self.method == "kmeans":
            raise ValueError("method: expected gptq or rtn where the format fixes the grid")
        if self.ranges == "clip":
            raise ValueError(
                "ranges: expected full, mse or weighted where the format fixes the grid"
            )
        if self.refit and self.refit_of_grid is None:
            raise ValueError("refit: expected False where the format fixes the grid")
        if self.method == "gptq" and not self.static_groups and self.act_order != "none":
            raise ValueError("static_groups: expected True where the format fixes the grid")


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """Report on one linear layer. Fields that its method does not use or measure are None."""

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
    """True if there were at least as many tokens as live channels."""
    dead: int | None = None
    """Channels that no token excited."""
    effective_rank: float | None = None
    """Number of independent channels that would vary as much as the inputs, at most K; GPTQ only."""
    loss: float | None = None
    """Squared error of the layer's outputs, `output_loss`: with a propagated target to those of the
    original layer on its original inputs."""
    rtn_loss: float | None = None
    """The same for round-to-nearest on the full range."""
    shrinkage: float | None = None
    percdamp: float | None = None
    damping: float | None = None
    tries: int | None = None
    smallest_pivot: float | None = None
    stored_bytes: int | None = None
    """Bytes of the layer's packed tensors."""
    remedy: str | None = None
    """Remedy for an expert with too few tokens of its own: see `quantize_experts`."""

    @property
    def fell_back(self) -> bool:
        """True if the layer needed more damping than its setting."""
        return self.tries is not None and self.tries > 1

    @property
    def low_rank(self) -> bool:
        """True if the inputs vary in too few directions for the layer, for any number of tokens."""
        live = self.shape[1] - (self.dead or 0)
        return self.effective_rank is not None and self.effective_rank < LEAST_RANK * live
