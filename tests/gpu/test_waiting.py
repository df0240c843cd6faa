"""Calls that nobody waits for: the host goes on while the device has not even begun."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from numbacalib.methods import gptq, gptq_batch, rtn
from numbacalib.runtime import readings

ROWS, CHANNELS, GROUP = 512, 1024, 128
CYCLES = 2_000_000_000
"""About a second."""


def arrays(generator, layers=2):
    shape = layers, ROWS, CHANNELS
    weights = torch.randn(shape, generator=generator, device="cuda")
    inputs = torch.randn((layers, 2 * CHANNELS, CHANNELS), generator=generator, device="cuda")
    return weights, inputs.transpose(1, 2) @ inputs


def grid(kind, weights, stacked):
    """Options of scales, and zeros, that a caller has chosen."""
    groups = weights.reshape(*weights.shape[:2], -1, GROUP)
    scales = (groups.abs().amax(3) / 7).half()
    options = {}
    if kind == "symmetric":
        options = {"scales": scales, "symmetric": True}
    if kind == "zeros":
        options = {"scales": scales, "zeros": torch.full_like(scales, 8).to(torch.uint8)}
    moved = ("scales", "zeros")
    return {key: v if stacked or key not in moved else v[0].clone() for key, v in options.items()}


@pytest.mark.parametrize("kind", ["found", "symmetric", "zeros"])
@pytest.mark.parametrize("method", [rtn, gptq, gptq_batch])
def test_a_call_returns_before_the_device_is_done(generator, method, kind):
    weights, hessians = arrays(generator)
    stacked = method is gptq_batch
    given = [weights, hessians] if stacked else [weights[0], hessians[0]]
    given = given[:1] if method is rtn else given
    options = {"bits": 4, "group_size": GROUP, "signed": True} | grid(kind, weights, stacked)
    lead = (2, ROWS) if stacked else (ROWS,)
    out = [
        torch.empty((*lead, width), dtype=dtype, device="cuda")
        for width, dtype in ((CHANNELS, torch.int8), (8, torch.float16), (8, torch.int8))
    ]

    def call(**more):
        found = method(*given, **options, **more)
        return found if stacked else [found]

    expected = torch.stack([torch.as_tensor(each.codes, device="cuda") for each in call()])
    call(wait=False, out=out)  # compiled, and memory is there
    torch.cuda.synchronize()
    out[0].zero_()
    torch.cuda._sleep(CYCLES)
    slept = torch.cuda.Event()
    slept.record()
    found = call(wait=False, out=out)
    assert not slept.query()  # all that the call does comes after
    for each in found:
        each.check()
        assert each.report is None
    assert slept.query()
    assert torch.equal(out[0].reshape(expected.shape), expected)


def test_checks_that_nobody_waits_for_do_not_pile_up(generator, monkeypatch):
    monkeypatch.setattr(readings, "UNREAD", 300)
    weights, _ = arrays(generator)
    for _ in range(5 * 256):
        rtn(weights[0], bits=4, group_size=GROUP, wait=False)
    torch.cuda.synchronize()
    buffers = readings._buffers(torch.cuda.current_device(), 8)
    assert 0 < len(buffers.read) + len(buffers.unread) <= 300 + readings.TOGETHER // 8


def test_checks_that_nobody_waits_for_outlive_their_stream():
    """In a process of its own, which the driver ends where an event is asked for a stream that is gone."""
    code = """
import cupy, torch
from numbacalib.methods import rtn
weight = cupy.ones((64, 64), cupy.float32)
for turn in range(500):
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        with torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr)):
            torch.cuda._sleep(100_000)
        late = weight * 2
        quantized = rtn(late, bits=4, group_size=64, wait=False)
    cupy.cuda.Device().synchronize()
    del stream, late, quantized
    if turn % 50 == 49:
        found = rtn(weight, bits=4, group_size=64)
        assert (found.codes.copy_to_host() == 15).all()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
