"""The factor that `gptq_quantize_column` is given, as ``U`` or as the inverse Hessian itself."""

from __future__ import annotations

from typing import Any

import numpy as np


def upper_factor(kernels: Any, h_inv: Any, dtype: np.dtype) -> Any:
    """Return ``U``: the argument if it is upper triangular, its factor if it is symmetric.

    Only the upper triangle of the result counts.

    Parameters
    ----------
    kernels : module
        The twin of the op for the array: `inspect_factor` looks at a matrix, `asymmetry` measures it
        against its largest diagonal entry, `cholesky` returns its factor and 0, or the order of the
        leading minor that is not positive.
    h_inv : array [K, K]
        Finite.
    dtype : dtype
        Of the calculation.
    """
    look = kernels.inspect_factor(h_inv, dtype)
    if look.bad is not None:
        at = f"[{look.bad}, {look.bad}]"
        raise ValueError(f"h_inv: expected a positive diagonal, got {look.entry} at {at}")
    if look.triangular:
        return look.matrix
    asymmetry = kernels.asymmetry(look)
    if asymmetry > np.sqrt(np.finfo(dtype).eps):
        raise ValueError(
            "h_inv: expected an upper triangular or a symmetric matrix, got one whose "
            f"asymmetry is {asymmetry:.2g} of its largest diagonal entry"
        )
    factor, minor = kernels.cholesky(look, dtype)
    if minor:
        raise ValueError(
            "h_inv: expected a positive definite matrix, got one whose leading minor of order "
            f"{minor} is not positive"
        )
    return factor
