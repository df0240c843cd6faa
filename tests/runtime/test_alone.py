"""Jobs that run at once, each on its own thread."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from numba import get_num_threads

from numbacalib.methods import gptq, gptq_batch
from numbacalib.runtime.alone import each_alone
from numbacalib.runtime.finite import require_finite
from numbacalib.runtime.threads import launching

SETTINGS = {"bits": 4, "group_size": 16, "act_order": "desc", "static_groups": True}


@pytest.fixture(autouse=True)
def _numba_has_started():
    require_finite("x", np.ones((2, 2)))


def layers(count, rows=24, channels=48, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(count, 96, channels)).astype(np.float32)
    hessians = 2 / 96 * inputs.swapaxes(1, 2) @ inputs
    return rng.normal(size=(count, rows, channels)).astype(np.float32), hessians


@pytest.mark.skipif(get_num_threads() < 2, reason="one thread runs one job after the other")
def test_jobs_run_at_once_and_launch_on_one_thread():
    together = threading.Barrier(2, timeout=30)

    def job(item):
        together.wait()
        require_finite("x", np.ones((50, 3)))  # a kernel, while the caller holds the turn
        return item, get_num_threads(), launching.is_left_out

    assert each_alone(job, range(4)) == [(item, 1, True) for item in range(4)]
    assert get_num_threads() > 1
    assert not launching.is_left_out


def test_a_batch_has_the_bits_of_one_by_one():
    weights, hessians = layers(7)
    together = gptq_batch(weights, hessians, **SETTINGS)
    for weight, hessian, quantized in zip(weights, hessians, together, strict=True):
        alone = gptq(weight, hessian, **SETTINGS)
        assert quantized == alone
        assert quantized.report == alone.report


def test_the_first_error_ends_the_rest():
    done = []

    def job(item):
        if item == 1:
            raise ValueError("item 1")
        done.append(item)

    with pytest.raises(ValueError, match="item 1"):
        each_alone(job, range(1000))
    assert len(done) < 1000
    with launching:  # the turn was given back
        assert each_alone(lambda item: item, range(3)) == [0, 1, 2]


def test_settings_of_the_caller_hold_in_its_jobs():
    def job(item):
        return np.array([3e38], np.float32) * np.float32(10 + item)

    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        each_alone(job, range(2))


WORKQUEUE = """
import numpy as np
from runtime.test_alone import SETTINGS, layers
from numbacalib.methods import gptq_batch
print(len(gptq_batch(*layers(3), **SETTINGS)))
"""


def test_numbas_workqueue_is_entered_by_one_thread():
    """It ends a process whose threads launch at once."""
    found = subprocess.run(
        [sys.executable, "-c", WORKQUEUE],
        env={
            **os.environ,
            "NUMBA_THREADING_LAYER": "workqueue",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout == "3\n", found.stderr
