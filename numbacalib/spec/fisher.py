"""The empirical diagonal Fisher information, ``mean_n(g[n, i] ** 2)``.

The diagonal of the mean outer product of per-sample gradients, as SqueezeLLM takes it for sensitivity:
Kim et al., "SqueezeLLM: Dense-and-Sparse Quantization" (2023), section 4.1.
"""

from __future__ import annotations

from numbacalib.runtime.jit import inlined


@inlined
def squared(gradient):
    """Square of a gradient, which one sample adds to a parameter's sum."""
    return gradient * gradient
