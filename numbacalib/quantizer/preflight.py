"""Checks before the first block of resources that the end of a run needs."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from numbacalib.models import Checkpoint
from numbacalib.models.layer_tensors import stages

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def statistics_bytes(checkpoint: Checkpoint) -> int:
    """Bytes that `collect` writes for a model: a Hessian and two vectors per input, and sums per layer."""
    total = 0
    for index in range(checkpoint.config.num_layers):
        for stage in stages(checkpoint.config, index):
            channels = checkpoint.info(f"model.layers.{index}.{stage[0]}.weight").shape[1]
            total += 4 * channels * (channels + 2 + len(stage))
    return total


def require_space(planned: Mapping[Path, int], options: Sequence[str] = ("--output",)) -> None:
    """Check that there is room for what is to be written to directories.

    Parameters
    ----------
    planned : mapping of Path to int
        Bytes by directory.
    options : sequence of str
        Names of the options that set the directories.

    Raises
    ------
    OSError
        If a file system has less; one line with both numbers and the option to change.
    """
    together: dict[int, int] = {}
    for (directory, size), option in zip(planned.items(), options, strict=True):
        system = directory.stat().st_dev
        together[system] = together.get(system, 0) + size
        usage = shutil.disk_usage(directory)
        if usage.total and usage.free < together[system]:  # network file systems may not know
            raise OSError(
                f"{directory.parent}: expected room for {in_units(together[system])}, "
                f"found {in_units(usage.free)} free: {option} on another file system would fit"
            )


def in_units(number: float) -> str:
    """Format a number of bytes in the unit that leaves one to three digits before the point."""
    unit = 0
    while number >= 1000 and unit + 1 < len(_UNITS):
        number /= 1000
        unit += 1
    return f"{number:.3g} {_UNITS[unit]}"


def resident_memory() -> int:
    """Bytes of host memory that the process holds now, or its peak where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_memory()
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_memory() -> int:
    """Peak bytes of host memory of the process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
