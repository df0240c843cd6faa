"""GPU kernels on disk: a later process compiles nothing and gets the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
from numba import cuda

from numbacalib.runtime import cubins, device
from numbacalib.runtime.launch import launch

PROGRAM = """
import hashlib, json, logging, sys, time
import numpy as np
from numba import cuda
import numbacalib
from numbacalib.methods import gptq_batch
from numbacalib.runtime import cubins

logging.basicConfig(stream=sys.stderr, format="%(message)s")
compile = cubins.compiled
compiled = []

def count(kernel, *arguments):
    compiled.append(kernel.__name__)
    return compile(kernel, *arguments)

cubins.compiled = count
rng = np.random.default_rng(0)
x = cuda.to_device(rng.standard_normal((300, 256)).astype(np.float32))
weights = cuda.to_device(rng.standard_normal((2, 96, 256)).astype(np.float32))
hessian = numbacalib.gptq_hessian_update(cuda.to_device(np.zeros((256, 256), np.float32)), x)
cuda.synchronize()
begin = time.perf_counter()
batch = cuda.to_device(np.stack([hessian.copy_to_host()] * 2))
results = [hessian, numbacalib.fisher_information(x)]
# its factorisation takes more shared memory than a kernel is given by itself
results += [quantized.codes for quantized in gptq_batch(weights, batch, bits=4)]
cuda.synchronize()
digest = hashlib.sha256(b"".join(r.copy_to_host().tobytes() for r in results)).hexdigest()
print(json.dumps([compiled, digest, time.perf_counter() - begin]))
"""


def run(folder):
    """Call operations in a fresh process: what it compiled, its results' digest, seconds, its errors."""
    # kernels of other tests that could be written nowhere else are in the system's folder for such files
    folders = {"NUMBA_CACHE_DIR": str(folder), "TMPDIR": str(folder.parent)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | folders,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    compiled, digest, seconds = json.loads(done.stdout)
    return compiled, digest, seconds, done.stderr


@pytest.fixture(scope="module")
def cold(tmp_path_factory):
    """A folder of kernels, and the digest of results in the process that compiled them."""
    folder = tmp_path_factory.mktemp("kernels")
    compiled, digest, _, errors = run(folder)
    assert len(compiled) == len(list(folder.rglob("*.cubin"))) > 10
    assert errors.count("compiling GPU kernels") == 1
    return folder, digest


def test_a_second_process_compiles_nothing(cold):
    folder, digest = cold
    compiled, again, seconds, errors = run(folder)
    assert (compiled, again, errors) == ([], digest, "")
    assert seconds < 2


def test_a_damaged_kernel_is_compiled_again(cold):
    folder, digest = cold
    files = sorted(folder.rglob("*.cubin"))
    contents = bytearray(files[0].read_bytes())
    contents[len(contents) // 2] ^= 1
    files[0].write_bytes(contents)
    files[1].write_bytes(b"")
    compiled, again, *_ = run(folder)
    assert (len(compiled), again) == (2, digest)
    assert run(folder)[0] == []


def test_processes_that_start_together_share_what_they_compile(cold, tmp_path):
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(run, [tmp_path] * 4))
    assert {digest for _, digest, *_ in results} == {cold[1]}
    assert run(tmp_path)[0] == []
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".cubin"]


def test_nothing_that_can_be_written_costs_only_time(cold, tmp_path):
    (tmp_path / "folder").write_text("in the way")
    assert run(tmp_path / "folder")[1] == cold[1]


def put_one(value):
    @cuda.jit
    def put(x):
        x[0] = value

    return put


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def called(value):
    array = device.zeros((1,), np.float32)
    launch(put_one(value), 1, 1, array)
    return device.read(array)[0]


def test_kernels_of_one_factory_are_kept_apart(folder):
    assert [called(1), called(2), called(1), called(2.5)] == [1, 2, 1, 2.5]
    assert len(list(folder.rglob("*.cubin"))) == 3


def test_threads_that_need_one_kernel_compile_it_once(folder, monkeypatch):
    compiled, compile_one = [], cubins.compiled
    monkeypatch.setattr(cubins, "compiled", lambda *a: compiled.append(1) or compile_one(*a))
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(called, [8] * 4)) == [8] * 4
    assert len(compiled) == 1
