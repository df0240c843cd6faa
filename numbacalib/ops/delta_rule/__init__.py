"""The gated delta rule."""

from __future__ import annotations

from typing import Any

from numbacalib.ops.delta_rule import cpu
from numbacalib.runtime.backend import call


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.delta_rule import gpu

    return gpu


def delta_rule(
    queries: Any,
    keys: Any,
    values: Any,
    decays: Any,
    rates: Any,
    *,
    slopes: Any,
    biases: Any,
) -> Any:
    """Read the memory of the gated delta rule, or of Mamba 2, at each position of a sequence.

    See `numbacalib.spec.delta_rule`; one position after the other, in float32.

    Parameters
    ----------
    queries, keys : float32 arrays [S, T, H', D], C-contiguous
        S sequences of T tokens, already normalized to length 1 for the delta rule, queries scaled. D is at
        most 256.
    values : array [S, T, H, V], C-contiguous, float16, bfloat16 or float32
        H' divides H; head h of values is written at keys ``h // (H / H')``.
    decays, rates : float32 arrays [S, T, H], C-contiguous
        Scores: a token's decay is `numbacalib.spec.delta_rule.decay_of` of the one, and its rate of writing
        the sigmoid of the other. Without `rates` it is Mamba 2: the rate is the softplus of the decay's
        score, and the value is written without correction.
    slopes, biases : float32 arrays [H]
        Of decays: logarithms of slopes, and biases of scores.

    Returns
    -------
    array [S, T, H, V], of the dtype of `values`
    """
    corrects = rates is not None
    with call(
        cpu,
        _gpu,
        queries=queries,
        keys=keys,
        values=values,
        decays=decays,
        rates=rates if corrects else decays,
        slopes=slopes,
        biases=biases,
    ) as (kernels, *arrays):
        return kernels.delta_rule(*arrays, corrects)
