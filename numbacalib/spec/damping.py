"""Damping of a Hessian's diagonal, and channels that no input ever excited.

``percdamp * mean(diag H)`` is added to each diagonal entry: Frantar et al., "GPTQ: Accurate Post-Training
Quantization for Generative Pre-trained Transformers" (2022), section 3.3. A dead channel,
``H[j, j] == 0``, has nothing but zeros in its row and column: it gets 1, which keeps the matrix positive
definite and all other channels as they are, and its weights become 0.
"""

from __future__ import annotations

from numbacalib.runtime.jit import inlined


@inlined
def is_dead(entry):
    """Return whether a diagonal entry is that of a dead channel."""
    return entry == 0


@inlined
def damped(entry, damping):
    """Diagonal entry of the damped matrix, from a float64 entry."""
    return 1.0 if is_dead(entry) else entry + damping
