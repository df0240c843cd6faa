"""Factors of large matrices, most of whose work is on tensor cores, against float64."""

import numpy as np
import pytest
import torch

from numbacalib.linalg import factor_hessians, solve_rows
from numbacalib.linalg import gpu as factor_kernels
from numbacalib.linalg.panels_gpu import PANEL
from numbacalib.methods import gptq

FACTOR_ERROR = 3e-6
"""Of an entry of ``R R^T``, as a fraction of the root of its row's and its column's diagonal entry: two
float16 halves leave up to 2^-21 of each of a product's factors, and float32 sums as much again; 2.3e-6
was seen."""


@pytest.fixture(autouse=True)
def _factor_in_panels(monkeypatch):
    monkeypatch.setattr(factor_kernels, "LARGE", PANEL + 1)


def hessian_of(channels, generator, kind):
    """Hessians of correlated inputs, of fewer tokens than channels, and with channels that stand out."""
    tokens = channels // 4 if kind == "low rank" else 2 * channels
    x = torch.randn(tokens, channels, device="cuda", generator=generator)
    x[:, 1:] += 0.5 * x[:, :-1]
    if kind == "outliers":
        x[:, ::64] *= 100
    return x.T @ x / tokens


@pytest.mark.parametrize("channels", [PANEL + 1, 2 * PANEL, 2 * PANEL + 8, 3 * PANEL - 37])
@pytest.mark.parametrize("kind", ["correlated", "low rank", "outliers"])
def test_factor_in_panels(channels, kind, generator):
    hessian = hessian_of(channels, generator, kind)
    order = np.random.default_rng(1).permutation(channels)
    orders = torch.as_tensor(order[None], device="cuda")
    found = factor_hessians(hessian[None], [0.01], orders=orders)
    upper = torch.as_tensor(found.upper, device="cuda")[0].double()
    expected = hessian.double()[order][:, order]
    expected += found.dampings[0] * torch.eye(channels, device="cuda")
    roots = expected.diagonal().sqrt()
    error = (upper @ upper.T - expected).abs() / roots / roots[:, None]
    assert found.minors == [0]
    assert error.max() < FACTOR_ERROR
    assert upper.tril(-1).abs().max() == 0


def test_first_minor_of_all_panels_is_told(generator):
    channels = 3 * PANEL
    hessian = hessian_of(channels, generator, "correlated")
    for channel in (PANEL // 2, PANEL + 3):
        hessian[channel, channel] = -1
    found = factor_hessians(hessian[None], [0.01])
    # the matrix is factored from its last channel on
    assert channels - found.minors[0] == PANEL + 3


@pytest.mark.parametrize("channels", [2 * PANEL, 3 * PANEL - 37])
@pytest.mark.parametrize("kind", ["correlated", "low rank"])
def test_systems_in_panels(channels, kind, generator):
    """Pairs of bfloat16 keep 16 bits of each factor of a product."""
    hessian = hessian_of(channels, generator, kind)
    upper = torch.as_tensor(factor_hessians(hessian[None], [0.01]).upper, device="cuda")[0]
    rows = torch.randn(300, channels, device="cuda", generator=generator) @ hessian
    found = torch.as_tensor(solve_rows(upper, rows), device="cuda").double()
    matrix = upper.double() @ upper.double().T
    left = (found @ matrix - rows.double()).norm()
    assert left < 2**-15 * found.norm() * matrix.norm()


@pytest.mark.parametrize("kind", ["correlated", "low rank", "outliers"])
def test_loss_is_that_of_float64(kind, generator):
    channels, rows = 2 * PANEL, 128
    hessian = hessian_of(channels, generator, kind)
    weight = torch.randn(rows, channels, device="cuda", generator=generator) * 0.02
    settings = {"bits": 4, "act_order": "desc", "static_groups": True}
    found = gptq(weight, hessian, **settings).report.loss
    exact = gptq(weight.double(), hessian.double(), **settings).report.loss
    assert found == pytest.approx(exact, rel=1e-3)
