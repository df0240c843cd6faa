"""The GPTQ Hessian of a linear layer's squared error, ``H = 2 / N * X^T X`` for N inputs in rows.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022),
section 3, averaged over the inputs. A block of rows is added by ``H <- beta * H + alpha * X^T X``; a mean
over blocks of different length is one such step a block.
"""

from __future__ import annotations

from numbacalib.runtime.jit import inlined


def block_weight(rows: int) -> float:
    """Weight ``alpha`` of a block that is averaged alone."""
    return 2.0 / rows


@inlined
def updated(entry, products, alpha, beta):
    """New entry of the matrix from the old one and the block's ``sum_n x[n, i] * x[n, j]``."""
    return alpha * products + beta * entry
