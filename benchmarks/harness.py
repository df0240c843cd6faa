"""Common parts of the benchmark scripts: interleaved timing, rows, machine and versions, CSV.

Candidates of one case take turns, round by round, so that drift of the machine affects all equally, and
shares are medians of the ratios within rounds. A clock is a function that runs a candidate once and
returns seconds: `wall_clock` here, device events in a GPU script.
"""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, get_type_hints

import numpy as np

T = TypeVar("T")
Clock = Callable[[Callable[[], Any]], float]
RESULTS = Path(__file__).parent / "results"
OURS = "numbacalib"
LIMIT = "limit: "
"""Prefix of the names of candidates that are ceilings of the machine, not peers."""
REST = 0.02
"""Idle seconds of all threads before a call is timed: thread pools spin after their work, OpenBLAS's for
0.11 s at 2.4 GHz, and would take processors from the next candidate's pool."""
IDLE = 0.1
"""Share of one processor that counts as idle."""
LONGEST_REST = 1.0
"""Seconds after which a call is timed without idle threads."""


class Row(NamedTuple):
    """One figure of one candidate, as in the CSV."""

    op: str
    shape: str
    dtype: str
    who: str
    seconds: float
    """Median, with `fastest` and `slowest` as its spread; NaN if the figure is not a time. For a limit that
    did another amount of work: scaled to the case's work."""
    fastest: float
    slowest: float
    rounds: int
    rate: float
    unit: str
    share: float = float("nan")
    """Of `against`: rate by rate for a target ``>=``, figure by figure for ``<=``."""
    against: str = ""
    target: str = ""
    note: str = ""

    @property
    def falls_short(self) -> bool:
        """True if the share misses the target; a NaN does."""
        if not self.target:
            return False
        limit = float(self.target[2:])
        return not (self.share >= limit if self.target[:2] == ">=" else self.share <= limit)


class Goal(NamedTuple):
    """Goal of a candidate: `target` is ``>=`` a share of a rate or ``<=`` one of a time."""

    who: str
    against: str
    """Name of another candidate, or a prefix of several names: the fastest of them counts."""
    target: str
    seconds: float | None = None
    """A time that `against` describes, instead of a candidate's."""


class Case(NamedTuple):
    """Candidates that do the same work on the same data."""

    op: str
    shape: str
    dtype: str
    work: float
    """Work of one call, bytes read or operations: 1e9 of it per second are one `unit`."""
    unit: str
    candidates: dict[str, Callable[[], Any]]
    goals: tuple[Goal, ...] = ()
    works: Mapping[str, float] = MappingProxyType({})
    """Work of the candidates that do another amount, such as a limit's own product."""
    tolerance: float | None = None
    """Allowed relative difference between the candidates' results; None if they may differ."""
    note: Callable[[Any], str] | None = None
    """Returns a note on a candidate's result, for instance its loss."""


def wall_clock(run: Callable[[], Any]) -> float:
    """Seconds that one call takes on the host."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(
    case: Case, *, rounds: int = 7, budget: float = 30.0, clock: Clock = wall_clock
) -> list[Row]:
    """Warm every candidate up once, time them in turns and return their rows.

    Up to `rounds` are timed while the case has taken less than `budget` seconds, but at least three,
    or seven if there is a goal: a shared machine's speed changes from call to call.
    """
    print(f"{case.op} {case.shape} {case.dtype}", flush=True)
    notes = _warm_up(case)
    times: dict[str, list[float]] = {name: [] for name in case.candidates}
    names = list(case.candidates)
    least = 7 if case.goals else 3
    began = time.perf_counter()
    for turn in range(rounds):
        if turn >= least and time.perf_counter() - began > budget:
            break
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            _wait_for_idle_threads()
            times[name].append(clock(case.candidates[name]))
    for name, work in case.works.items():
        times[name] = [seconds * case.work / work for seconds in times[name]]
    return [_row(case, name, times, notes.get(name, "")) for name in names]


def _wait_for_idle_threads() -> None:
    """Sleep until the threads of this process have slept for `REST`, or for `LONGEST_REST`."""
    for _ in range(round(LONGEST_REST / REST)):
        worked = time.process_time()
        time.sleep(REST)
        if time.process_time() - worked < IDLE * REST:
            return


def _warm_up(case: Case) -> dict[str, str]:
    """Run every candidate once; check that the results agree, and return their notes."""
    notes, expected = {}, None
    for name, run in case.candidates.items():
        result = run()
        if name.startswith(LIMIT):
            continue
        if case.note:
            notes[name] = case.note(result)
        if case.tolerance is not None:
            result = np.asarray(result, np.float64)
            expected = result if expected is None else expected
            difference = np.abs(result - expected).max() / np.abs(expected).max()
            if not difference <= case.tolerance:
                raise AssertionError(f"{case.op} {case.shape}: {name} differs by {difference:.2g}")
    return notes


def _row(case: Case, name: str, times: dict[str, list[float]], note: str) -> Row:
    seconds = times[name]
    median = statistics.median(seconds)
    spread = min(seconds), max(seconds), len(seconds)
    rate = case.work / median / 1e9
    row = Row(*case[:3], name, median, *spread, rate, case.unit, note=note)
    goals = [_against(row, goal, times) for goal in case.goals if goal.who == name]
    return min(goals, key=_margin) if goals else row


def _against(row: Row, goal: Goal, times: dict[str, list[float]]) -> Row:
    """Add a goal's target to a row, and the share that the row reaches."""
    if goal.seconds is not None:
        share = row.seconds / goal.seconds
        return row._replace(share=share, against=goal.against, target=goal.target)
    rivals = [other for other in times if other.startswith(goal.against) and other != goal.who]
    rival = min(rivals, key=lambda other: statistics.median(times[other]))
    ratio = statistics.median(
        ours / theirs for ours, theirs in zip(times[goal.who], times[rival], strict=True)
    )
    share = 1 / ratio if goal.target.startswith(">=") else ratio
    return row._replace(share=share, against=rival, target=goal.target)


def _margin(row: Row) -> float:
    """Factor by which a row exceeds its target; the goal with the least is reported."""
    limit = float(row.target[2:])
    return row.share / limit if row.target.startswith(">=") else limit / row.share


def figure(
    op: str,
    shape: str,
    value: float,
    unit: str,
    *,
    dtype: str = "float32",
    limit: float | None = None,
    against: str = "",
    slack: float = 1.0,
) -> Row:
    """Return a row for a single figure without rivals, optionally with an upper limit."""
    seconds = value if unit == "s" else float("nan")
    row = Row(op, shape, dtype, OURS, seconds, seconds, seconds, 1, value, unit)
    if limit is None:
        return row
    against = against or f"{limit:g} {unit}"
    return row._replace(share=value / limit, against=against, target=f"<={slack:g}")


def known(value: T | None) -> T:
    """Return a figure that other callers may lack, and this one has measured."""
    assert value is not None
    return value


def describe_machine(*packages: str, **facts: str) -> dict[str, str]:
    """Date, commit, machine, versions of `packages` and the settings that change times."""
    prefixes = ("OPENBLAS_", "OMP_", "GOMP_", "MKL_", "NUMBA_")
    settings = {k: v for k, v in os.environ.items() if k.startswith(prefixes)}
    settings.pop("NUMBA_CACHE_DIR", None)
    return {
        "date": datetime.date.today().isoformat(),
        "commit": _output("git", "describe", "--always", "--dirty"),
        "machine": cpu_name(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages),
        "pools": _thread_pools(),
        "settings": ", ".join(f"{k}={v}" for k, v in sorted(settings.items())) or "none",
        **facts,
    }


def _thread_pools() -> str:
    """Libraries with threads of their own, each with its version, its kernels and how many it starts."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:  # no reason to lose a benchmark's minutes
        return "unknown without threadpoolctl"
    return "; ".join(
        f"{Path(pool['filepath']).parent.name} {pool['internal_api']} {pool['version']} "
        f"{pool.get('architecture', '')} x{pool['num_threads']}"
        for pool in threadpool_info()
    )


def cpu_name() -> str:
    """Model name of the processor, from the kernel."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _output(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return done.stdout.strip() or "unknown"


def csv_file(name: str, machine: dict[str, str], folder: Path = RESULTS) -> Path:
    """Path of a benchmark's results on a machine, ``<folder>/<name>-<machine>.csv``."""
    slug = re.sub(r"[^a-z0-9]+", "-", f"{machine['machine']} x{machine['cores']}".lower())
    return folder / f"{name}-{slug.strip('-')}.csv"


def write_csv(
    name: str, machine: dict[str, str], rows: Sequence[NamedTuple], folder: Path = RESULTS
) -> Path:
    """Write `csv_file`: the machine in comment lines, then rows of one type."""
    file = csv_file(name, machine, folder)
    folder.mkdir(exist_ok=True)
    with file.open("w", newline="") as stream:
        stream.writelines(f"# {key}: {value}\n" for key, value in machine.items())
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(rows[0]._fields)
        for row in rows:
            writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row])
    return file


def read_csv(file: Path, kind: type = Row) -> tuple[dict[str, str], list[Any]]:
    """Return machine and rows, named tuples of type `kind`, of a file of `write_csv`."""
    lines = file.read_text().splitlines()
    head = [line for line in lines if line.startswith("# ")]
    machine = dict(line[2:].split(": ", 1) for line in head)
    types = get_type_hints(kind)
    rows = [
        kind(**{key: _read_as(types[key], value) for key, value in record.items()})
        for record in csv.DictReader(lines[len(head) :])
    ]
    return machine, rows


def _read_as(kind: type, text: str) -> Any:
    return text == "True" if kind is bool else kind(text)
