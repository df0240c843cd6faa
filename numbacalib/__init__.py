"""Calibration for weight quantization without torch, on NumPy arrays and CUDA arrays of any library.

Quantizing a layer well takes some of its inputs: their statistics tell which weight errors matter in the
layer's output, and codes are chosen that keep those small.

>>> import numpy as np
>>> import numbacalib
>>> rng = np.random.default_rng(0)
>>> weight = rng.standard_normal((64, 128), np.float32)  # [outputs, inputs]
>>> inputs = rng.standard_normal((512, 128), np.float32).cumsum(axis=1)  # correlated channels

`InputStatistics` gathers GPTQ's Hessian batch by batch, and `gptq` quantizes the weight:

>>> statistics = numbacalib.statistics.InputStatistics(128)
>>> for batch in np.split(inputs, 4):
...     statistics.update(batch)
>>> quantized = numbacalib.methods.gptq(weight, statistics.hessian, bits=4, group_size=32)
>>> quantized.codes.shape, quantized.scales.shape
((64, 128), (64, 4))

Rounding to nearest, which ignores the inputs, loses more than ten times as much:

>>> nearest = numbacalib.methods.rtn(weight, bits=4, group_size=32)
>>> loss = numbacalib.methods.proxy_loss
>>> bool(loss(weight, quantized, statistics.hessian) < 0.1 * loss(weight, nearest, statistics.hessian))
True

The same step by step, with operations that all take float16, bfloat16, float32 and float64:

>>> hessian = numbacalib.gptq_hessian_update(np.zeros((128, 128), np.float32), inputs)
>>> factor = numbacalib.gptq_inverse_hessian(hessian)
>>> values, scales, zeros = numbacalib.gptq_quantize_column(weight, factor, 4, 32, False)

`awq_channel_scores` and `fisher_information` compute the other two calibration statistics.
`numbacalib.quantizer` and the command ``numbacalib`` quantize whole models from Hugging Face directories
and GGUF files. `numbacalib.methods`, `numbacalib.statistics` and `numbacalib.quantizer` are imported on
first use; the last needs ``numbacalib[models]``.
"""

from __future__ import annotations

import importlib
from typing import Any

import numbacalib.runtime.threads  # noqa: F401  (before NumPy and Numba)  # isort: skip

from numbacalib.linalg import gptq_inverse_hessian
from numbacalib.ops.awq_channel_scores import awq_channel_scores
from numbacalib.ops.fisher_information import fisher_information
from numbacalib.ops.gptq_hessian_update import gptq_hessian_update
from numbacalib.ops.gptq_quantize_column import gptq_quantize_column
from numbacalib.runtime.array import Array

__version__ = "0.1.0"

__all__ = [
    "Array",
    "awq_channel_scores",
    "fisher_information",
    "gptq_hessian_update",
    "gptq_inverse_hessian",
    "gptq_quantize_column",
]

_ROOMS = ("methods", "quantizer", "statistics")
"""Modules that are imported on first use."""


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name == "quantize":
        return importlib.import_module(f"{__name__}.quantizer").quantize
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS, "quantize"})
