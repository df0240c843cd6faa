"""Quantize one layer from NumPy: statistics of its inputs in, codes and scales out."""

import numpy as np

from numbacalib.methods import gptq, proxy_loss, rtn
from numbacalib.statistics import InputStatistics

K, M = 256, 128
rng = np.random.default_rng(0)
weight = (0.02 * rng.normal(size=(M, K))).astype(np.float32)
mixing = rng.normal(size=(K, K)) / np.sqrt(K)  # channels of real layers are correlated too

# Inputs come in blocks of any length; the statistics are K x K, whatever the number of tokens.
statistics = InputStatistics(K)
for _ in range(4):
    tokens = rng.normal(size=(512, K)) @ mixing
    statistics.update(tokens.astype(np.float32))

quantized = gptq(weight, statistics.hessian, bits=4, group_size=64)
assert quantized.report  # None for weights that GPTQ did not quantize
nearest = rtn(weight, bits=4, group_size=64)

print(f"codes {quantized.codes.shape} {quantized.codes.dtype}, scales {quantized.scales.shape}")
loss = proxy_loss(weight, quantized, statistics.hessian)
share = loss / proxy_loss(weight, nearest, statistics.hessian)
print(f"{statistics.tokens} tokens, damping {quantized.report.damping:.2g}")
print(f"squared error of the layer's outputs: {share:.2f} of round-to-nearest's")
assert share < 1
