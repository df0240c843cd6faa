"""Shrinkage of a Hessian toward its diagonal: the remedy for fewer tokens than channels."""

from __future__ import annotations

from numbacalib.methods.solver import effective_rank
from numbacalib.methods.target import damped_factors
from numbacalib.ops.shrinkage import correlation_sums
from numbacalib.runtime import checks
from numbacalib.runtime.array import Array
from numbacalib.runtime.backend import arrays_of_one_device

LEAST_RANK = 0.25
"""Effective rank, as a share of the live channels, below which inputs count as too few: all layers of
SmolLM2-135M are above it with real text, and the first ones below it with a few words repeated."""


def distinct_tokens(hessian: Array, tokens: int, percdamp: float, tries: int) -> int:
    """Estimate the number of distinct tokens of a Hessian: fewer than were counted, if tokens repeat.

    Repeated tokens show only in the effective rank. If it is below `LEAST_RANK` of the live channels, it is
    the estimate; otherwise all counted tokens are taken as distinct.
    """
    factors = damped_factors(hessian, percdamp, tries, checks.result_dtype(hessian))
    (spread,), (damping,) = factors.diagonals, factors.dampings
    rank = effective_rank(spread, factors.roots[0], damping)
    return min(tokens, max(1, round(rank))) if rank < LEAST_RANK * (spread > 0).sum() else tokens


def shrinkage_for(hessian: Array, tokens: int) -> float:
    """Find the share by which to shrink a Hessian that was estimated from `tokens` tokens, 0 to 1.

    ``sum (1 - r**2)**2 / tokens / sum r**2`` over the correlations r of different channels: the
    share that minimises the expected squared error of the correlations for independent draws from a
    normal distribution. Tokens of one text are correlated, so this share is rather too small.

    Parameters
    ----------
    hessian : array [K, K]
    tokens : int
        At least 1.

    Returns
    -------
    float
        The `shrinkage` of `gptq`.

    Raises
    ------
    ValueError, TypeError
        If a shape, a dtype or the number of tokens does not fit.

    Notes
    -----
    Schäfer and Strimmer, "A Shrinkage Approach to Large-Scale Covariance Matrix Estimation and
    Implications for Functional Genomics" (2005), target D, with the large-sample variance
    ``(1 - r**2)**2 / n`` of a normal distribution's correlation.

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib.methods import shrinkage_for
    >>> shrinkage_for(np.array([[1, 0.5], [0.5, 1]]), tokens=9)
    0.25
    """
    tokens = checks.integer("tokens", tokens, 1, 1 << 62)
    with arrays_of_one_device(hessian=hessian) as (hessian,):
        checks.square("hessian", hessian)
        noise, signal = correlation_sums(hessian)
    return min(1.0, noise / tokens / signal) if signal > 0 else 0.0
