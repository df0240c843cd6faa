"""Launches with arguments that we pack, and by Numba for a numba-cuda that this was not tested with."""

import pytest
import torch

import numbacalib
from numbacalib.methods import gptq_batch
from numbacalib.runtime import packed_launch


def results(generator_seed):
    generator = torch.Generator("cuda").manual_seed(generator_seed)
    x = torch.randn(300, 256, device="cuda", generator=generator)
    weights = torch.randn(2, 96, 256, device="cuda", generator=generator)
    empty = torch.zeros(256, 256, device="cuda")
    hessian = torch.as_tensor(numbacalib.gptq_hessian_update(empty, x), device="cuda")
    factor = numbacalib.gptq_inverse_hessian(hessian)
    return [
        numbacalib.fisher_information(x.half()),
        numbacalib.awq_channel_scores(x.bfloat16(), weights[0]),
        numbacalib.gptq_hessian_update(hessian, x.bfloat16()),
        *numbacalib.gptq_quantize_column(weights[0], factor, 4, 32, False),
        # its factorisation takes more shared memory than a kernel is given by itself
        *(
            quantized.codes
            for quantized in gptq_batch(weights, torch.stack([hessian, 2 * hessian]), bits=4)
        ),
    ]


@pytest.mark.parametrize("seed", [1, 2])
def test_launches_by_numba_give_the_same_bits(monkeypatch, seed):
    assert packed_launch.PACKED, "the installed numba-cuda is not among TESTED"
    packed = results(seed)
    monkeypatch.setattr(packed_launch, "PACKED", False)
    for ours, numbas in zip(packed, results(seed), strict=True):
        assert torch.equal(
            torch.as_tensor(ours, device="cuda"), torch.as_tensor(numbas, device="cuda")
        )
