"""Device memory: one pool with CuPy, in the order of streams, with one clear error where it ends."""

from __future__ import annotations

import gc
import subprocess
import sys

import cupy
import numpy as np
import pytest
import torch
from models.tiny import TEXT, write_tiny_checkpoint

import numbacalib
from numbacalib.quantizer import quantize
from numbacalib.runtime import device, memory, streams


@pytest.fixture(params=["CuPy's", "the driver's"])
def pool(request, monkeypatch):
    """Memory as CuPy gives it, and as it comes where CuPy is not installed."""
    if request.param == "the driver's":
        monkeypatch.setattr(memory, "has_cupy", lambda: False)
    return request.param


@pytest.fixture
def new_pool(monkeypatch):
    """CuPy's pool, new: parts of blocks that other tests' arrays lie in count for its limit, too."""
    pool, default = cupy.cuda.MemoryPool(), cupy.get_default_memory_pool()
    monkeypatch.setattr(cupy, "get_default_memory_pool", lambda: pool)
    cupy.cuda.set_allocator(pool.malloc)
    yield pool
    cupy.cuda.set_allocator(default.malloc)


def test_arrays_lie_in_the_pool_of_cupy(new_pool):
    pool = new_pool
    before = pool.used_bytes()
    array = device.empty((1 << 20,), np.float32)
    assert pool.used_bytes() == before + (4 << 20)
    del array
    assert pool.used_bytes() == before
    pool.free_all_blocks()
    total = pool.total_bytes()
    array = device.empty((3 << 20,), np.float32)
    assert pool.total_bytes() == total + (12 << 20)
    del array
    pool.free_all_blocks()
    assert pool.total_bytes() == total


def test_a_limit_of_cupys_pool_holds(new_pool):
    new_pool.set_limit(size=64 << 20)
    kept = device.empty((32 << 20,), np.uint8)
    needed, free = f"{48 << 20:,}", f"{32 << 20:,}"
    with pytest.raises(MemoryError, match=f"GPU 0: {needed} bytes are needed, {free} are free"):
        device.empty((48 << 20,), np.uint8)
    del kept
    device.empty((48 << 20,), np.uint8)


def test_what_is_free_in_pieces_is_said_to_be(new_pool):
    new_pool.set_limit(size=64 << 20)
    device.empty((48 << 20,), np.uint8)
    left, middle, right = (device.empty((16 << 20,), np.uint8) for _ in range(3))
    del left, right
    with pytest.raises(
        MemoryError, match=f"{32 << 20:,} bytes .*, {48 << 20:,} are free in pieces"
    ):
        device.empty((32 << 20,), np.uint8)
    del middle
    device.empty((64 << 20,), np.uint8)


def test_more_than_there_is_is_one_error(pool):
    with pytest.raises(MemoryError, match=r"GPU 0: 1,099,511,627,776 bytes are needed, [\d,]+ are"):
        device.empty((1 << 40,), np.uint8)
    x = torch.ones(4, 4, device="cuda")
    assert torch.as_tensor(numbacalib.fisher_information(x), device="cuda").tolist() == [1] * 4


def test_what_is_freed_is_taken_in_the_order_of_a_stream(pool):
    """A stream that is late reads its array after another stream has taken memory of that size."""
    late, other = torch.cuda.Stream(), torch.cuda.Stream()
    for _ in range(3):
        order = streams.Order(late, 0, [])
        source = device.zeros((1 << 22,), np.float32)
        torch.cuda._sleep(200_000_000)
        result = device.empty((1 << 22,), np.float32)
        device.copy(source, result)
        del source
        order.leave()
        order = streams.Order(other, 0, [])
        device.write(device.empty((1 << 22,), np.float32), np.ones(1 << 22, np.float32))
        order.leave()
        torch.cuda.synchronize()
        assert not device.read(result).any()


def test_results_that_live_until_the_end_end_silently(tmp_path):
    program = (
        "import sys, torch, numbacalib\n"
        "from numbacalib.runtime import memory\n"
        "if sys.argv[1]: memory.has_cupy = lambda: False\n"
        "kept = numbacalib.fisher_information(torch.ones(4, 4, device='cuda'))\n"
        "sys.kept = [kept]; sys.kept.append(sys.kept)\n"
    )
    for without in ("", "without CuPy"):
        done = subprocess.run(
            [sys.executable, "-c", program, without],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("room", [0.3, 0.6, 0.9])
def test_a_run_that_finds_less_memory_than_its_plan_leaves_nothing(tmp_path, new_pool, room):
    """Where a plan knows nothing of what other programs take meanwhile."""
    (tmp_path / "text.txt").write_text(TEXT * 200)
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "head_dim": 128}
    model = write_tiny_checkpoint(tmp_path / "model", **sizes)
    pool = new_pool
    options = {"samples": 64, "sequence_length": 64, "device": "cuda"}
    quantize(model, tmp_path / "whole", text=[tmp_path / "text.txt"], **options)

    def limited(_):
        pool.free_all_blocks()
        pool.set_limit(size=pool.used_bytes() + int(room * 24 * 2**20))

    before = {file.name for file in tmp_path.iterdir()}
    try:
        with pytest.raises(MemoryError, match=r"bytes are needed, .* would fit$"):
            quantize(
                model, tmp_path / "out", text=[tmp_path / "text.txt"], planned=limited, **options
            )
    finally:
        pool.set_limit(size=0)
    assert {file.name for file in tmp_path.iterdir()} == before
    gc.collect()
    pool.free_all_blocks()
    used = pool.used_bytes()
    quantize(model, tmp_path / "out", text=[tmp_path / "text.txt"], **options)
    gc.collect()
    assert pool.used_bytes() <= used
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "out")]
    assert files[0] == files[1]


def test_a_run_fits_into_what_its_plan_says(tmp_path, new_pool):
    """In a pool that is limited to it: with all on the device, with activations that are not held, and with
    states that stream.
    """
    (tmp_path / "text.txt").write_text(TEXT * 3000)
    sizes = {"hidden_size": 1024, "intermediate_size": 3584, "head_dim": 64}
    sizes |= {"num_attention_heads": 16, "num_key_value_heads": 4}
    model = write_tiny_checkpoint(tmp_path / "model", dtype="bfloat16", **sizes)
    plans, files = [], []

    def run(limit):
        gc.collect()
        new_pool.free_all_blocks()
        kept = new_pool.used_bytes()  # constants of kernels, which stay
        new_pool.set_limit(size=limit and limit + kept)
        output = tmp_path / f"out-{len(files)}"
        options = {"samples": 640, "sequence_length": 256, "device": "cuda", "target": "layerwise"}
        quantize(model, output, text=[tmp_path / "text.txt"], planned=plans.append, **options)
        files.append((output / "model.safetensors").read_bytes())
        print(f"limit {limit}, planned {plans[-1].device_bytes}, taken {new_pool.total_bytes()}")

    run(0)
    run(plans[0].device_bytes)
    run(plans[1].device_bytes)
    run(plans[1].device_bytes - 1)
    run(plans[3].device_bytes)
    assert [plan.streamed_bytes > 0 for plan in plans] == [False, False, False, True, True]
    assert len(set(files)) == 1
