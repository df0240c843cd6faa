"""Alternatives that a user might choose: the same work by NumPy, torch, onnxruntime, llm-compressor."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray

from numbacalib.demo.wheels import fetch_wheel

LLM_COMPRESSOR = (
    "llmcompressor",
    "0.14.0.1",
    "fedc804a45bf3e353b84b8181147474c324ffba3356c9ecebceae29dfc3c5f00",
)
BLOCK = 128
"""Columns between the original algorithm's updates of all columns to the right."""


def tensor(array: NDArray) -> torch.Tensor:
    """Return a torch tensor over the same memory; bfloat16 is passed as its bits."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def readers(*arrays: NDArray) -> dict[str, Any]:
    """Return several ways to read every byte of arrays on all cores; the fastest is the limit."""
    words = [array.reshape(-1).view(np.int64) for array in arrays]
    halves = [half for array in words for half in np.array_split(array, torch.get_num_threads())]
    floats = [tensor(array.view(np.float32)) for array in words]
    threads = ThreadPoolExecutor(torch.get_num_threads())
    return {
        "limit: read, numba": lambda: [_read(array) for array in words],
        "limit: read, torch": lambda: [array.sum() for array in floats],
        "limit: read, numpy": lambda: list(threads.map(np.bitwise_or.reduce, halves)),
    }


@njit(parallel=True, nogil=True)
def _read(words):
    total = 0
    for task in prange(64):
        part = 0
        for i in range(task * len(words) // 64, (task + 1) * len(words) // 64):
            part += words[i]
        total += part
    return total


def numpy_scores(activations: NDArray, weights: NDArray) -> NDArray:
    """AWQ channel scores in plain NumPy."""
    return np.abs(activations).max(axis=0) * np.abs(weights).mean(axis=0)


def torch_scores(activations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """AWQ channel scores in plain torch, the mean in float32 at least."""
    dtype = torch.promote_types(weights.dtype, torch.float32)
    return activations.abs().amax(0).to(dtype) * weights.abs().mean(0, dtype=dtype)


def torch_fisher(gradients: torch.Tensor) -> torch.Tensor:
    """Mean of squares in torch, in float32 at least."""
    return gradients.to(torch.promote_types(gradients.dtype, torch.float32)).square().mean(0)


def torch_hessian(hessian: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Add ``2 / B x^T x`` in place, as GPTQ implementations in torch do."""
    x = x.float() * (2 / len(x)) ** 0.5
    return hessian.add_(x.t() @ x)


def torch_inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """Damp, factor, invert and factor again, as in the original code."""
    hessian = hessian.clone()
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True)


def numpy_inverse_factor(hessian: NDArray) -> NDArray:
    """The same with NumPy's inv and cholesky."""
    damped = hessian.copy()
    np.fill_diagonal(damped, damped.diagonal() + 0.01 * damped.diagonal().mean())
    return np.linalg.cholesky(np.linalg.inv(damped)).T


def column_loop(
    weight: torch.Tensor, upper: torch.Tensor, group: int, bits: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize by the GPTQ paper's algorithm 1 in eager torch: column by column, asymmetric.

    Returns the values and the loss, which the original computes for each weight and sums for its log, as
    llm-compressor and ours do. The columns to the right of a block are updated once per block. Groups start
    at block edges, where all earlier columns have been compensated for.
    """
    weight = weight.clone()
    values, losses = torch.zeros_like(weight), torch.zeros_like(weight)
    largest = 2**bits - 1
    width = max(1, BLOCK // group) * group
    for start in range(0, weight.shape[1], width):
        stop = min(start + width, weight.shape[1])
        block = weight[:, start:stop].clone()
        found, errors, lost = (torch.zeros_like(block) for _ in range(3))
        factor = upper[start:stop, start:stop]
        for j in range(stop - start):
            if (start + j) % group == 0:
                scale, zero = _group_grid(block[:, j : j + group], largest)
            column, pivot = block[:, j], factor[j, j]
            value = ((column / scale).round() + zero).clamp(0, largest).sub(zero).mul(scale)
            found[:, j] = value
            lost[:, j] = (column - value) ** 2 / pivot**2
            error = (column - value) / pivot
            block[:, j:] -= error.unsqueeze(1) @ factor[j, j:].unsqueeze(0)
            errors[:, j] = error
        values[:, start:stop] = found
        losses[:, start:stop] = lost
        weight[:, stop:] -= errors @ upper[start:stop, stop:]
    return values, losses.sum()


def _group_grid(weights: torch.Tensor, largest: int) -> tuple[torch.Tensor, torch.Tensor]:
    low = weights.amin(1).clamp(max=0)
    high = weights.amax(1).clamp(min=0)
    scale = (high - low) / largest
    scale[scale == 0] = 1
    return scale, (-low / scale).round()


def original_gptq(
    weight: torch.Tensor, hessian: torch.Tensor, group: int, bits: int = 4, act_order: bool = False
) -> torch.Tensor:
    """GPTQ of a layer as in the original code: the chain of three factorizations, then the loop.

    With `act_order` columns with the largest inputs come first, and groups are runs in that order.
    """
    if not act_order:
        values, _ = column_loop(weight, torch_inverse_factor(hessian), group, bits)
        return values
    order = hessian.diagonal().argsort(descending=True)
    values = original_gptq(weight[:, order], hessian[order][:, order], group, bits)
    return values[:, order.argsort()]


def onnxruntime_gptq(weight: NDArray, hessian: NDArray, group: int) -> NDArray:
    """GPTQ of a layer by onnxruntime, which has input channels in rows and overwrites its input."""
    from onnxruntime.quantization.neural_compressor.weight_only import gptq

    return gptq(weight.T.copy(), hessian.copy(), num_bits=4, group_size=group).T


class LlmCompressor:
    """GPTQ of llm-compressor: its two GPTQ modules, read from its wheel without its dependencies.

    Its observers find the scales of all groups from the weights before any compensation.
    """

    def __init__(self) -> None:
        wheel = fetch_wheel(*LLM_COMPRESSOR)
        for name in ("llmcompressor", "llmcompressor.modifiers", "llmcompressor.modifiers.gptq"):
            # an empty package instead of the wheel's own, whose __init__ imports everything
            package = ModuleType(name)
            package.__path__ = [f"{wheel}/{name.replace('.', '/')}"]
            sys.modules[name] = package
        from compressed_tensors.quantization import QuantizationArgs
        from compressed_tensors.quantization.utils import calculate_qparams
        from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

        self._arguments, self._scales, self._quantize = (
            QuantizationArgs,
            calculate_qparams,
            quantize_weight,
        )

    def __call__(
        self,
        weight: torch.Tensor,
        hessian: torch.Tensor,
        group: int,
        bits: int = 4,
        act_order: bool = False,
    ) -> torch.Tensor:
        """Quantize, asymmetric, and return the values; `act_order` is its "weight" (static) order.

        Takes a layer, [M, K] and [K, K], or a stack of equal ones.
        """
        if weight.ndim == 2:
            return self(weight[None], hessian[None], group, bits, act_order)[0]
        settings = self._arguments(
            num_bits=bits,
            type="int",
            strategy="group",
            group_size=group,
            symmetric=False,
            actorder="weight" if act_order else None,
        )
        groups = weight.unflatten(-1, (-1, group))
        scales, zeros = self._scales(groups.amin(-1), groups.amax(-1), settings)
        values, _, _ = self._quantize(
            weight.clone(), hessian.clone(), scales, zeros, None, settings
        )
        return values
