"""Coordinate descent over the codes of a quantized weight, on its own grids."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from numbacalib.methods.loss import errors_of, require_layer
from numbacalib.methods.quantized_weight import QuantizedWeight
from numbacalib.ops.code_descent import descended_codes
from numbacalib.ops.matrix import cast, diagonal, to_host
from numbacalib.runtime import checks
from numbacalib.runtime.array import ArrayT
from numbacalib.runtime.backend import arrays_of_one_device
from numbacalib.spec.grid import INTEGER


def descend_codes(
    weight: ArrayT,
    quantized: QuantizedWeight[ArrayT],
    hessian: ArrayT,
    *,
    passes: int = 1,
    percdamp: float = 0.01,
) -> QuantizedWeight[ArrayT]:
    """Choose each code again, column after column, while all others of its row stay.

    It takes codes of any method, on integer grids of any kind. No row's ``trace(D H D^T)`` with the damped
    Hessian rises. Scales may be refitted after it, and more passes made.

    Parameters
    ----------
    weight : array [M, K]
        Weight that the codes should stand for: the layer's, or its `propagated_target`.
    quantized : QuantizedWeight
    hessian : array [K, K]
    passes : int, default 1
        Sweeps over the columns; a row in which one changes no code is done.
    percdamp : float, default 0.01
        Damping, as a fraction of the mean of the Hessian's diagonal: as in `gptq`.

    Returns
    -------
    QuantizedWeight
        Other codes, on the same grids.

    Raises
    ------
    ValueError, TypeError
        If an argument does not fit, a value is not finite (the first index is named), or the arrays are
        on different devices.

    Notes
    -----
    Behdin et al., "QuantEase" (arXiv 2309.01885): see `numbacalib.spec.code_descent`.

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib.methods import descend_codes, rtn
    >>> hessian = np.full((4, 4), 0.9, np.float32)
    >>> np.fill_diagonal(hessian, 1)
    >>> weight = np.array([[0, 3.4, 3.4, 15]], np.float32)
    >>> quantized = rtn(weight, bits=4, group_size=None)
    >>> quantized.codes
    array([[ 0,  3,  3, 15]], dtype=uint8)
    >>> descend_codes(weight, quantized, hessian).codes
    array([[ 1,  3,  3, 15]], dtype=uint8)
    """
    if quantized.element != INTEGER:
        raise ValueError(f"quantized: expected integer codes, got {quantized.element}")
    passes = checks.integer("passes", passes, 1, 1000)
    if checks.finite_number("percdamp", percdamp) < 0:
        raise ValueError(f"percdamp: expected a number not below 0, got {percdamp}")
    grids = {"codes": quantized.codes, "scales": quantized.scales, "zeros": quantized.zeros}
    with arrays_of_one_device(weight=weight, hessian=hessian, **grids) as (weight, hessian, *own):
        codes, scales, zeros = own
        dtype = require_layer(weight, codes, hessian)
        errors = errors_of(cast(weight, dtype), quantized)
        damping = percdamp * float(to_host(diagonal(hessian)).mean(dtype=np.float64))
        grid = codes, scales, zeros, quantized.group_of, quantized.bits
        loss = errors, cast(hessian, dtype), damping
        return replace(quantized, codes=descended_codes(*grid, *loss, passes))
