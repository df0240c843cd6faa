"""Sizes of real layers, and more elements than 32-bit indices reach."""

import cases
import numpy as np
import pytest
import torch

import numbacalib
from numbacalib.linalg import factor_hessians
from numbacalib.methods import gptq, proxy_loss, rtn
from numbacalib.ops.gptq_quantize_column import quantize_direct
from numbacalib.spec.gptq import ColumnGrids
from numbacalib.spec.grid import Grid, group_indices

LONG = 2**31 // 4096 + 50000
"""Rows of 4096 elements with more than 2**31 of them."""
HALVES = (torch.float16, torch.bfloat16)


def tensor(result):
    return torch.as_tensor(result, device="cuda")


def normal(rows, columns, dtype, generator):
    """Normal values, made in runs of rows so that no wide copy of the whole is needed."""
    matrix = torch.empty(rows, columns, dtype=dtype, device="cuda")
    for part in matrix.split(1 << 16):
        part.copy_(torch.randn(part.shape, device="cuda", generator=generator))
    return matrix


def gram(x):
    """``x^T x`` in float64, by runs of rows."""
    total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device="cuda")
    for part in x.split(1 << 16):
        total.addmm_(part.double().T, part.double())
    return total


@pytest.mark.parametrize("shape", [(LONG, 4096), (3, 720_000_000)], ids=["tall", "wide"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_columns(form, dtype, shape, generator):
    x = normal(*shape, dtype, generator)
    squares = torch.zeros(shape[1], dtype=torch.float64, device="cuda")
    peaks = torch.zeros(shape[1], dtype=dtype, device="cuda")
    for part in x.split(1 << 16):
        for columns in torch.arange(shape[1], device="cuda").split(1 << 26):
            here = slice(int(columns[0]), int(columns[-1]) + 1)
            squares[here] += part[:, here].double().square().sum(0)
            peaks[here] = torch.maximum(peaks[here], part[:, here].abs().amax(0))
    information = tensor(numbacalib.fisher_information(x))
    torch.testing.assert_close(information.double(), squares / len(x), rtol=1e-5, atol=0)
    weights = x[:2]
    scores = tensor(numbacalib.awq_channel_scores(x, weights))
    expected = peaks.float() * weights.float().abs().mean(0)
    torch.testing.assert_close(scores, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("rows", "channels"), [(LONG, 4096), (100, 46500), (1000, 4096), (1000, 14336)]
)
def test_hessian(form, dtype, rows, channels, generator):
    x = normal(rows, channels, dtype, generator)
    hessian = torch.zeros(channels, channels, device="cuda")
    hessian[-1, 0] = hessian[0, -1] = 3
    updated = tensor(numbacalib.gptq_hessian_update(hessian, x, beta=0.5, out=hessian))
    expected = gram(x).mul_(2 / rows)
    expected[-1, 0] += 1.5
    expected[0, -1] += 1.5
    error = float((updated - expected).abs().max() / expected.max())
    print(f"{form} {dtype} B={rows} K={channels}: {error:.2g}")
    assert error <= cases.tolerance(np.float32, rows)
    for part, other in zip(updated.split(4096), updated.split(4096, dim=1), strict=True):
        assert torch.equal(part, other.T)


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 16, 31, 512, 8192])
def test_hessian_is_as_accurate_as_a_product_in_float32(rows, generator):
    """At most twice the error of the product that peers use, against float64."""
    x = normal(rows, 4096, torch.float32, generator)
    hessian = torch.zeros(4096, 4096, device="cuda")
    exact = gram(x)
    ours = tensor(numbacalib.gptq_hessian_update(hessian, x, alpha=1.0))
    assert torch.backends.cuda.matmul.allow_tf32 is False
    error, peer = ((product - exact).norm() / exact.norm() for product in (ours, x.T @ x))
    print(f"B={rows}: {float(error):.3g}, plain float32 {float(peer):.3g}")
    assert error <= 2 * peer


@pytest.mark.parametrize("channels", [4096, 14336])
@pytest.mark.parametrize("rows", [1, 100])
def test_gptq_loses_what_it_loses_in_float64(rows, channels, generator):
    """The definition of the target: within 0.1 % of the loss of the float64 result."""
    x = normal(2 * channels, channels, torch.float32, generator)
    x[:, 1:] += 0.5 * x[:, :-1]
    hessian = tensor(
        numbacalib.gptq_hessian_update(torch.zeros(channels, channels, device="cuda"), x)
    )
    weight = normal(rows, channels, torch.float32, generator) * 0.02
    groups = group_indices(channels, 128)
    losses = [
        float(direct_loss(weight.to(dtype), hessian.to(dtype), groups))
        for dtype in (torch.float32, torch.float64)
    ]
    print(f"{rows} x {channels}: loss {losses[0]:.6g}, in float64 {losses[1]:.6g}")
    assert abs(losses[0] / losses[1] - 1) < 1e-3


def direct_loss(weight, hessian, groups):
    upper = factor_hessians(hessian[None], [0.01]).upper
    found = quantize_direct(weight, upper, ColumnGrids(Grid(4, False), groups[None]))
    at = torch.from_numpy(groups).cuda()
    codes = tensor(found.codes).double() - tensor(found.zeros).double()[:, at]
    difference = weight.double() - codes * tensor(found.scales).double()[:, at]
    return torch.vdot((difference @ hessian.double()).ravel(), difference.ravel())


def test_gptq_of_a_weight_beyond_32_bit_indices(generator):
    """Rows are independent: the last ones come out as they do alone."""
    x = normal(8192, 4096, torch.float32, generator)
    upper = factor_hessians((x.T @ x)[None], [0.01]).upper
    grids = ColumnGrids(Grid(4, False), group_indices(4096, 128)[None])
    weight = normal(LONG, 4096, torch.float16, generator)
    whole = quantize_direct(weight, upper, grids)
    alone = quantize_direct(weight[-1000:], upper, grids)
    same = (tensor(whole.codes)[-1000:] == tensor(alone.codes)).double().mean()
    assert same > 0.999  # a tie may fall the other way where a product sums in another order
    torch.testing.assert_close(
        tensor(whole.losses)[-1000:].sum(), tensor(alone.losses).sum(), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("decades", [0, 4], ids=["even", "outliers"])
def test_proxy_loss_of_a_large_layer(decades, generator):
    """Half floats of errors are of no account, whatever channels of a Hessian are far above the others."""
    rows, channels = 1536, 4096
    x = normal(2 * channels, channels, torch.float32, generator)
    x *= 10 ** (decades * torch.rand(channels, device="cuda", generator=generator) - decades / 2)
    weight = normal(rows, channels, torch.float32, generator)
    hessian = gram(x)
    single = hessian.float()
    for quantized in (
        rtn(weight, bits=3, group_size=128),
        gptq(weight, single, bits=3, group_size=128),
    ):
        error = (weight - tensor(quantized.dequantize())).double()
        expected = float(((error @ single.double()) * error).sum())
        assert proxy_loss(weight, quantized, single) == pytest.approx(expected, rel=2e-4)
