"""Common parts of the GPU benchmarks: a clock by device events, the read ceiling, the run itself."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from harness import LIMIT, OURS, RESULTS, Case, Goal, Row, describe_machine, measure, write_csv
from report import report

from numbacalib.runtime import device

PACKAGES = ("numba", "numba-cuda", "numpy", "torch")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
READ = LIMIT + "read"
ON_OTHERS = f"{OURS}, as on GPUs other than 9.0"
LONG = 0.05
"""Seconds above which a call is timed alone."""


def type_name(dtype: torch.dtype) -> str:
    """NumPy's name of a dtype."""
    return str(dtype).removeprefix("torch.")


def read(*tensors: torch.Tensor) -> None:
    """Read every byte once, as fast as torch sums float32."""
    for tensor in tensors:
        tensor.view(torch.float32).sum()


def read_goal(who: str) -> Goal:
    """Share of its input's read bandwidth that a reduction must reach."""
    return Goal(who, READ, ">=0.9")


@contextmanager
def other_capability() -> Iterator[None]:
    """Run as on GPUs of other compute capabilities than 9.0, without kernels for its tensor cores."""
    kept = device.has_capability_9_0
    device.has_capability_9_0 = lambda: False
    try:
        yield
    finally:
        device.has_capability_9_0 = kept


def device_clock(calls: int) -> Callable[[Callable[[], Any]], float]:
    """Return a clock of device time: seconds of one call, from a run of `calls`.

    The run is on the default stream, so it includes host work that does not overlap. A call before it keeps
    the device busy while the host starts the first one.
    """

    def run_of(run: Callable[[], Any], count: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / count

    def clock(run: Callable[[], Any]) -> float:
        single = run_of(run, 1)
        if single > LONG:
            return single
        run()
        return run_of(run, calls)

    return clock


def run(name: str, cases: Iterable[tuple[Callable[[], Case], int]]) -> int:
    """Measure cases, each with its number of calls per run, one in memory at a time.

    Writes ``results/<name>-gpu-<GPU>.csv``, prints the table, and returns 1 if a target is missed.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    machine = describe_machine(*PACKAGES, machine=torch.cuda.get_device_name(), driver=_driver())
    rows: list[Row] = []
    for make, calls in cases:
        case = make()
        rows += measure(case, clock=device_clock(calls))
        for row in rows[-len(case.candidates) :]:
            spread = f"{row.fastest * 1e3:.3f}..{row.slowest * 1e3:.3f}"
            share = f"{row.share:.2f} of {row.against}, {row.target}" if row.target else ""
            print(f"  {row.who:40} {row.seconds * 1e3:9.3f} ms ({spread}) {share} {row.note}")
        del case
        torch.cuda.empty_cache()
        file = write_csv(f"{name}-gpu", machine, rows, RESULTS)
    return report(file, docs=False)


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
