"""AWQ: ``act_scale[j] = max_n |a[n, j]|`` and ``score[j] = mean_i(act_scale[j] * |w[i, j]|)``.

Salience by activation magnitude: Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression
and Acceleration" (2023), section 3. The factor is taken out of the mean, so that one pass over the weights
is enough; only an infinite factor is multiplied by each weight, since infinity times a zero weight is NaN.
Maxima are taken over the bits of the magnitudes, which keeps NaN: see
`numbacalib.spec.scalars.larger_magnitude`.
"""

from __future__ import annotations

from numbacalib.runtime.jit import inlined


@inlined
def magnitude(x):
    """Magnitude of one element, for the mean and the maximum of its channel."""
    return abs(x)


@inlined
def channel_score(act_scale, mean_magnitude):
    """Score of a channel from the largest activation and the mean weight, both magnitudes."""
    return act_scale * mean_magnitude
