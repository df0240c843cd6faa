"""Both forms of each kernel over sizes around the edges of their tiles, and run after run."""

import cases
import naive
import numpy as np
import pytest
import torch

import numbacalib
from numbacalib.linalg import factor_hessians
from numbacalib.ops.attention import attention
from numbacalib.ops.columns import gpu as column_kernels
from numbacalib.ops.gptq_quantize_column import quantize_direct
from numbacalib.ops.matrix import to_host
from numbacalib.ops.products import add_moment
from numbacalib.runtime import device, moments_gpu
from numbacalib.spec.gptq import ColumnGrids
from numbacalib.spec.grid import Grid, group_indices

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EDGES = (1, 2, 7, 9, 31, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 341, 511, 513, 576)


def normal(shape, dtype, generator):
    return torch.randn(*shape, device="cuda", generator=generator).to(dtype)


def tensor(result):
    return torch.as_tensor(result, device="cuda")


def assert_close(result, expected, terms, scale):
    """Within what sums of `terms` float32 numbers may differ, of elements as large as `scale`."""
    error = (tensor(result).double().to(expected.device) - expected).abs().max() / scale
    assert error <= cases.tolerance(np.float32, terms), f"{tuple(expected.shape)}, {terms} terms"


@pytest.mark.parametrize("rows", [1, 5, 31, 63, 64, 65, 129, 300])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hessian(form, dtype, rows, generator):
    for channels in EDGES:
        x = normal((rows, channels), dtype, generator)
        hessian = torch.zeros(channels, channels, device="cuda")
        updated = numbacalib.gptq_hessian_update(hessian, x)
        expected = 2 / rows * x.double().T @ x.double()
        assert torch.equal(tensor(updated), tensor(updated).T)
        assert_close(updated, expected, rows, expected.abs().max())


@pytest.mark.parametrize("rows", [1, 31, 64, 129, 300, 1100])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments_of_two_inputs(form, dtype, rows, monkeypatch, generator):
    """Of all widths, begun anywhere, in chunks of rows, and added to what is there."""
    monkeypatch.setattr(moments_gpu, "CHUNK_ROWS", 1024)
    for channels, width in zip(EDGES, (*EDGES[5:], 1030, *EDGES[:4]), strict=True):
        left = normal((rows, channels + 8), dtype, generator)[:, 8:]
        right = normal((rows, width + 3), dtype, generator)[:, 3:]
        target = torch.ones(channels, width, device="cuda")
        add_moment(target, left, right, 2 / rows, 0.5)
        expected = 0.5 + 2 / rows * left.double().T @ right.double()
        assert_close(target, expected, rows, expected.abs().max())


@pytest.mark.parametrize("rows", [1, 8, 63, 64, 65, 257, 2049])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_columns(form, dtype, rows, generator):
    for columns in (*EDGES, 1023, 1025, 4096, 14336):
        x = normal((rows, columns), dtype, generator)
        # on the host: what torch sums across blocks reads memory that initcheck calls unset
        squares = x.cpu().double().square().mean(0)
        assert_close(numbacalib.fisher_information(x), squares, rows, squares.max())
        weights = normal((65, columns), dtype, generator)
        scores = x.cpu().double().abs().amax(0) * weights.cpu().double().abs().mean(0)
        assert_close(numbacalib.awq_channel_scores(x, weights), scores, 65, scores.max())


@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize(
    ("size", "width"), [(64, 64), (128, 128), (192, 128), (72, 40), (40, 72), (96, 136)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention(form, dtype, size, width, window, generator):
    """Weights of 16-bit values are rounded to their type, and so is the result."""
    length = 200
    queries = normal((2, length, 6, size), dtype, generator)
    keys = normal((2, length, 2, size), dtype, generator)
    values = normal((2, length, 2, width), dtype, generator)
    found = to_host(attention(queries, keys, values, window)).astype(np.float64)
    found = torch.from_numpy(found).cuda()
    q, k, v = (array.double().transpose(1, 2) for array in (queries, keys, values))
    k, v = (array.repeat_interleave(3, dim=1) for array in (k, v))
    positions = torch.arange(length, device="cuda")
    behind = positions[:, None] - positions
    seen = (behind >= 0) & (behind < (window or length))
    scores = (q @ k.mT / size**0.5).masked_fill(~seen, -torch.inf)
    expected = (scores.softmax(-1) @ v).transpose(1, 2)
    allowed = max(torch.finfo(dtype).eps, cases.tolerance(np.float32, size))
    assert (found - expected).abs().max() <= allowed * v.abs().max()


def test_forms_agree(monkeypatch, generator):
    x = normal((3000, 1024), torch.float32, generator)
    calls = (
        lambda: numbacalib.fisher_information(x),
        lambda: numbacalib.awq_channel_scores(x, x),
        lambda: numbacalib.gptq_hessian_update(torch.zeros(1024, 1024, device="cuda"), x),
    )
    chosen = [tensor(call()) for call in calls]
    monkeypatch.setattr(column_kernels, "_has_vectors", lambda _: False)
    monkeypatch.setattr(device, "capability", lambda _: (0, 0))
    for call, expected in zip(calls, chosen, strict=True):
        assert_close(call(), expected, len(x), expected.abs().max())


@pytest.mark.parametrize("group_size", [1, 8, 36, 48, 72, 144, 288])
@pytest.mark.parametrize("rows", [1, 33])
def test_gptq_in_float64_gives_the_codes_of_the_definition(form, rows, group_size):
    channels = 576 if rows == 1 else 288
    weight = cases.random_matrix(1, (rows, channels))
    upper = np.triu(cases.random_matrix(2, (channels, channels)) * 0.1 + 2 * np.eye(channels))
    _, scales, zeros, values = naive.gptq_quantize_column(weight, upper, 4, group_size, False)
    arrays = torch.from_numpy(weight).cuda(), torch.from_numpy(upper).cuda()
    result = numbacalib.gptq_quantize_column(*arrays, 4, group_size, False)
    for found, expected in zip(result, (values, scales, zeros), strict=True):
        np.testing.assert_allclose(tensor(found).cpu(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("channels", [341, 576, 1024])
def test_direct_form_gives_the_codes_of_the_inverse(form, channels, generator):
    x = normal((2 * channels, channels), torch.float64, generator)
    hessian, weight = x.T @ x, normal((33, channels), torch.float64, generator)
    groups = group_indices(channels, channels // 11 if channels == 341 else 64)
    upper = factor_hessians(hessian[None], [0.01]).upper
    direct = quantize_direct(weight, upper, ColumnGrids(Grid(4, False), groups[None]))
    inverse = numbacalib.gptq_inverse_hessian(hessian)
    size = channels // (int(groups[-1]) + 1)
    values, scales, _ = numbacalib.gptq_quantize_column(weight, inverse, 4, size, False)
    np.testing.assert_allclose(tensor(direct.scales).cpu(), tensor(scales).cpu(), rtol=1e-8)
    at = torch.from_numpy(groups).cuda()
    codes = tensor(direct.codes).double() - tensor(direct.zeros)[:, at]
    torch.testing.assert_close(
        codes * tensor(direct.scales)[:, at], tensor(values), rtol=1e-8, atol=1e-9
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_run_after_run(form, dtype, generator):
    x = normal((3000, 576), dtype, generator)
    hessian = normal((576, 576), torch.float32, generator)
    hessian = hessian @ hessian.T
    calls = {
        "fisher": lambda: numbacalib.fisher_information(x),
        "scores": lambda: numbacalib.awq_channel_scores(x, x[:70]),
        "hessian": lambda: numbacalib.gptq_hessian_update(hessian, x),
        "factor": lambda: numbacalib.gptq_inverse_hessian(hessian),
        "gptq": lambda: numbacalib.gptq_quantize_column(x[:70], hessian, 4, 64, False)[0],
    }
    for name, call in calls.items():
        first = tensor(call()).clone()
        for _ in range(3):
            assert torch.equal(tensor(call()), first), name
