"""Sums that tensor cores truncate, where channels go together: the error would be of low rank."""

import cases
import numpy as np
import pytest
import torch

import numbacalib
from numbacalib.ops.products import add_moment

EIGENVALUE_ERROR = float(np.finfo(np.float32).eps)
"""Of a Hessian, as a fraction of K times its mean diagonal: one rounding of every entry, all of one sign.
It leaves the damping of 0.01 enough for 80,000 channels; 4e-6 was seen where 8192 rows were truncated."""


def together(rows, channels, dtype, generator):
    """Inputs that are nearly one vector, as a norm's are once attention has averaged a text."""
    of_channels = torch.randn(channels, device="cuda", generator=generator)
    of_rows = 1 + 1e-3 * torch.randn(rows, 1, device="cuda", generator=generator)
    noise = torch.randn(rows, channels, device="cuda", generator=generator)
    return (of_channels * of_rows + 1e-4 * noise).to(dtype)


@pytest.mark.parametrize("rows", [8192, 40000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_hessian_stays_semidefinite(form, dtype, rows, generator):
    channels = 1024
    x = together(rows, channels, dtype, generator)
    found = numbacalib.gptq_hessian_update(torch.zeros(channels, channels, device="cuda"), x)
    found = torch.as_tensor(found, device="cuda").double()
    exact = 2 / rows * x.double().T @ x.double()
    scale = channels * exact.diagonal().mean()
    least = float(torch.linalg.eigvalsh(found)[0] / scale)
    roots = exact.diagonal().sqrt()
    error = (found - exact) / roots / roots[:, None]
    print(f"{form} {dtype} B={rows}: least {least:.2g}, error {error.abs().max():.2g}")
    assert least >= -EIGENVALUE_ERROR


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_moment_of_two_inputs_is_no_less_exact(dtype, generator):
    """Of inputs with themselves, where it is a Hessian."""
    rows, channels = 8192, 1024
    x = together(rows, channels, dtype, generator)
    found = torch.zeros(channels, channels, device="cuda")
    add_moment(found, x, x, 2 / rows, 1.0)
    least = float(torch.linalg.eigvalsh((found + found.T).double() / 2)[0])
    assert least >= -EIGENVALUE_ERROR * channels * float(found.diagonal().double().mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_long_sums_fall_short_by_no_more_than_short_ones(form, dtype, generator):
    """The mean of many errors, which rounding to nearest makes of either sign, is that of 512 rows."""
    x = torch.randn(32768, 512, device="cuda", generator=generator).to(dtype)
    found = numbacalib.gptq_hessian_update(torch.zeros(512, 512, device="cuda"), x)
    found = torch.as_tensor(found, device="cuda").double().diagonal()
    exact = 2 / len(x) * x.double().square().sum(0)
    short = float((found / exact - 1).mean())
    print(f"{form} {dtype}: {short:.2g}")
    assert abs(short) <= cases.tolerance(np.float32, 512)
