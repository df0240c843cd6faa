"""Worker processes, started in each way: they work, or say at once why they cannot."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

TIMEOUT = 100
"""Seconds; what hung did so for ever."""

SCRIPT = """
import multiprocessing
import os
import sys
import threading
import time
import numpy as np
import numbacalib
from numbacalib.methods import rtn

X = np.arange(12, dtype=np.float32).reshape(3, 4)
RIGHT = (X ** 2).mean(0)


def work(scale=1):
    np.testing.assert_allclose(numbacalib.fisher_information(scale * X), scale ** 2 * RIGHT, rtol=1e-6)
    return scale


def start_pool_of_numba():
    rtn(X, bits=4, group_size=4)  # a loop over prange


def pool(method):
    with multiprocessing.get_context(method).Pool(2) as workers:
        assert workers.map(work, range(1, 9)) == list(range(1, 9))


if __name__ == "__main__":
"""


def run(tmp_path, body, **environment):
    """Run a script that ends by itself, and return its exit status and output."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + "".join(f"    {line}\n" for line in body.strip().splitlines()))
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def check_works(tmp_path, body, **environment):
    status, output = run(tmp_path, body, **environment)
    assert status == 0, output


def test_forks_after_kernels_that_take_tasks_work(tmp_path):
    check_works(tmp_path, 'work()\npool("fork")\nwork()')


def test_a_pool_of_forks_after_a_call_is_told_why_it_cannot_work(tmp_path):
    status, output = run(tmp_path, 'start_pool_of_numba()\npool("fork")')
    assert status == 1
    assert output.splitlines()[-1].startswith("RuntimeError: this process was forked")
    assert "spawn or forkserver" in output


def test_a_forked_process_after_a_call_is_told_why_it_cannot_work(tmp_path):
    body = """
start_pool_of_numba()
process = multiprocessing.get_context("fork").Process(target=work)
process.start()
process.join()
sys.exit(process.exitcode)
"""
    status, output = run(tmp_path, body)
    assert status == 1
    assert "RuntimeError: this process was forked" in output


def test_a_fork_after_anothers_kernel_is_told_so_too(tmp_path):
    body = """
import numba
numba.njit(parallel=True)(lambda x: x + 1)(X)
pool("fork")
"""
    assert "RuntimeError: this process was forked" in run(tmp_path, body)[1]


def test_no_work_is_begun_in_such_a_process(tmp_path):
    body = """
hessian = np.zeros((4, 4), np.float32)
start_pool_of_numba()
if not os.fork():
    try:
        numbacalib.gptq_hessian_update(hessian, X, out=hessian)
    except RuntimeError:
        os._exit(int(hessian.any()))
    os._exit(9)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    check_works(tmp_path, body)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_fresh_workers_after_a_call_work(tmp_path, method):
    check_works(tmp_path, f'start_pool_of_numba()\npool("{method}")\nwork()')


def test_forks_before_the_first_call_work_beside_their_parent(tmp_path):
    """As a DataLoader's do, whose workers and consumer both call."""
    body = """
fork = multiprocessing.get_context("fork")
with fork.Pool(2) as workers:
    loaded = workers.imap(work, range(1, 40))
    for scale in range(1, 40):
        assert next(loaded) == work(scale)
"""
    check_works(tmp_path, body)


def test_forks_work_at_any_time_on_the_workqueue(tmp_path):
    body = """
start_pool_of_numba()
pool("fork")
fork = multiprocessing.get_context("fork")
with fork.Pool(2) as workers:
    for scale, loaded in enumerate(workers.imap(work, range(1, 40)), 1):
        assert loaded == work(scale)
"""
    check_works(tmp_path, body, NUMBA_THREADING_LAYER="workqueue")


def test_a_fork_while_another_thread_computes_gets_a_free_lock(tmp_path):
    body = """
X = np.tile(X, (2000, 20))
RIGHT = (X ** 2).mean(0, dtype=np.float64)
work()
done = threading.Event()
def compute():
    while not done.is_set():
        numbacalib.fisher_information(X)
thread = threading.Thread(target=compute)
thread.start()
for _ in range(30):
    if not os.fork():
        numbacalib.fisher_information(X)
        os._exit(0)
for _ in range(30):
    assert os.wait()[1] == 0
done.set()
thread.join()
"""
    check_works(tmp_path, body, NUMBA_THREADING_LAYER="workqueue")
