"""Collect once, quantize often: solve layers from statistics and weights on disk (extra `models`)."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from numbacalib.methods import LayerSettings, solve
from numbacalib.statistics import (
    InputStatistics,
    load_statistics,
    load_weights,
    save_statistics,
)

K, M = 256, 128
rng = np.random.default_rng(0)
weights = {name: rng.normal(size=(M, K)).astype(np.float32) for name in ("gate", "up")}
shared = InputStatistics(K)  # both layers read the same inputs: stored once
shared.update(rng.normal(size=(1024, K)).astype(np.float32))

with TemporaryDirectory() as folder:
    file = Path(folder) / "block-0.safetensors"
    save_statistics(file, dict.fromkeys(weights, shared), weights)
    statistics, saved = load_statistics(file), load_weights(file)

for bits in (4, 3):
    settings = LayerSettings(bits=bits, group_size=64, act_order="desc", static_groups=True)
    for _, report in solve(saved, statistics, settings):
        assert report.loss  # None without statistics
        assert report.rtn_loss
        share = report.loss / report.rtn_loss
        print(f"{report.name} {bits} bits: {share:.3f} of round-to-nearest's loss")
