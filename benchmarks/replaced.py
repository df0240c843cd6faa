"""llm-compressor with two of its functions replaced by ours, for authors of quantization libraries.

A call of `replace_gptq` suffices: GPTQ's Hessians are then accumulated, and layers quantized, by
numbacalib's kernels, on llm-compressor's torch tensors on a GPU, with the scales that its observers
chose. ``python benchmarks/model_gpu.py 1b --peer`` runs both.
"""

from __future__ import annotations

from typing import Any

import torch

import numbacalib
from numbacalib.methods import QuantizedWeight, gptq_batch


def accumulate_hessian(
    inp: torch.Tensor, module: torch.nn.Module, hessian: torch.Tensor, num_samples: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add ``2 X^T X`` of a linear layer's inputs [..., K] to the Hessian, in place."""
    del module
    num_samples += inp.shape[0] if inp.ndim > 2 else 1
    rows = inp.reshape(-1, inp.shape[-1])
    numbacalib.gptq_hessian_update(hessian, rows, alpha=2.0, beta=1.0, out=hessian)
    return hessian, num_samples


def quantize_weight(
    weights: torch.Tensor,
    hessians: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    global_scale: torch.Tensor | None,
    quant_args: Any,
    blocksize: int = 128,
    percdamp: float = 0.01,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantize layers [E, M, K] of integer groups; returns values, losses [E] and no fallbacks [E]."""
    del blocksize
    assert global_scale is None
    grid: dict[str, Any] = {"scales": scale.contiguous()}
    if not quant_args.symmetric:  # llm-compressor's codes are signed, ours are not
        signed = zero_point.to(torch.int16) + 2 ** (quant_args.num_bits - 1)
        grid["zeros"] = signed.to(torch.uint8).contiguous()
    found = gptq_batch(
        weights,
        hessians,
        bits=quant_args.num_bits,
        group_size=quant_args.group_size,
        symmetric=quant_args.symmetric,
        scale_dtype=scale.dtype,
        act_order="none" if quant_args.actorder is None else "desc",
        static_groups=True,
        percdamp=percdamp,
        **grid,
    )
    values = [torch.from_dlpack(each.dequantize(weights.dtype)) for each in found]
    losses = torch.tensor([loss_of(each) for each in found], device=weights.device)
    return torch.stack(values), losses, torch.zeros(len(found), dtype=torch.bool)


def loss_of(found: QuantizedWeight) -> float:
    """Loss of a weight that GPTQ quantized."""
    assert found.report is not None
    return found.report.loss


def replace_gptq() -> None:
    """Make llm-compressor's GPTQ modifier call these two functions."""
    from llmcompressor.modifiers.gptq import base

    base.accumulate_hessian = accumulate_hessian
    base.quantize_weight = quantize_weight
