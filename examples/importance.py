"""Weigh errors by importance: the mean square of inputs (imatrix), or Fisher information."""

import numpy as np

from numbacalib.methods import RangeSearch, codebook, rtn
from numbacalib.statistics import GradientStatistics, InputStatistics

K, M = 256, 128
rng = np.random.default_rng(0)
weight = (0.02 * rng.standard_t(4, size=(M, K))).astype(np.float32)
width = np.exp(rng.normal(size=K))  # some channels carry far larger inputs than others


def error(quantized, importance):
    return float((importance * (weight - quantized.dequantize()) ** 2).sum())


# The importance of a channel, as in an imatrix of llama.cpp.
inputs = InputStatistics(K)
inputs.update((width * rng.normal(size=(1024, K))).astype(np.float32))
imatrix = inputs.mean_square
plain = rtn(weight, bits=3, group_size=64)
searched = rtn(weight, bits=3, group_size=64, search=RangeSearch(), importance=imatrix)
print(f"ranges by imatrix: {error(searched, imatrix) / error(plain, imatrix):.2f} of the error")

# The importance of each weight: gradients, sample by sample, from any training framework.
gradients = GradientStatistics(weight.shape)
for _ in range(8):
    gradients.update(width * rng.normal(size=weight.shape))
weighted = codebook(weight, bits=3, importance=gradients.fisher)
unweighted = codebook(weight, bits=3)
share = error(weighted, gradients.fisher) / error(unweighted, gradients.fisher)
print(f"codebooks by Fisher information: {share:.2f} of the error")
assert share < 1
