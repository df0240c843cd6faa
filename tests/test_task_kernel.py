"""Kernels whose workers take tasks in threads of Python's."""

import os
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

from numbacalib.runtime import jit, workers
from numbacalib.runtime.jit import task_kernel
from numbacalib.runtime.tasks import fetch_add
from numbacalib.runtime.workers import Workers


@task_kernel
def double(counter, values):
    i = fetch_add(counter)
    while i < len(values):
        values[i] *= 2
        i = fetch_add(counter)


@task_kernel
def refuse(counter, values):
    if fetch_add(counter) == len(values):
        raise ValueError("the last worker")


@pytest.fixture
def threads(request, monkeypatch):
    """Numbers of threads that this machine need not have processors for."""
    monkeypatch.setattr(jit, "thread_count", lambda: request.param)
    return request.param


@pytest.mark.parametrize("threads", [1, 2, 5], indirect=True)
def test_each_task_is_done_once(threads):
    values = np.arange(1000)
    double(len(values), values)
    np.testing.assert_array_equal(values, 2 * np.arange(1000))


@pytest.mark.parametrize("threads", [1, 3], indirect=True)
def test_an_error_of_any_worker_is_raised(threads):
    with pytest.raises(ValueError, match="the last worker"):
        refuse(1000, np.zeros(threads - 1))


@pytest.mark.parametrize("threads", [3], indirect=True)
@pytest.mark.parametrize("tasks", [0, 1, 2])
def test_no_more_workers_than_tasks(threads, tasks):
    refuse(tasks, np.zeros(tasks))  # none of them is worker number `tasks`


@pytest.mark.parametrize("threads", [3], indirect=True)
def test_threads_that_sleep_keep_no_array(threads):
    values = np.arange(1000)
    kept = weakref.ref(values)
    double(len(values), values)
    del values
    assert kept() is None


def processors_of_a_worker(team):
    """Processors that one worker beside this thread may use."""
    seen = {}
    team.run(1, lambda: seen.update({threading.get_ident(): os.sched_getaffinity(0)}), ())
    assert seen.pop(threading.get_ident()) == os.sched_getaffinity(0)
    return seen.popitem()[1]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system places threads")
def test_workers_leave_its_processor_to_the_caller(monkeypatch):
    allowed, team = os.sched_getaffinity(0), Workers()
    for processor in sorted(allowed):
        monkeypatch.setattr(workers, "_current_processor", lambda here=processor: here)
        assert processors_of_a_worker(team) == (allowed - {processor} or allowed)
    assert os.sched_getaffinity(0) == allowed


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system places threads")
def test_workers_that_may_not_be_placed_run_where_they_are(monkeypatch):
    def refuse_placement(*_):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuse_placement)
    assert processors_of_a_worker(Workers()) == os.sched_getaffinity(0)


FORKED = """
import os
import numpy as np
from test_task_kernel import double
values = np.arange(100)
double(len(values), values)
child = os.fork()
if not child:
    double(len(values), values)
    os._exit(0 if (values == 4 * np.arange(100)).all() else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_forked_child_has_threads_of_its_own():
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "0", done.stderr
