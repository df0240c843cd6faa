"""Run one target on damaged files, with limits of address space and time; a process of its own.

``python child.py TARGET SEED COUNT DIRECTORY`` prints nothing and exits 0, or prints what went wrong: the
example's number is its seed, so that COUNT = 1 and SEED = that number runs it again.
"""

from __future__ import annotations

import errno
import faulthandler
import random
import resource
import shutil
import sys
import traceback
from pathlib import Path

from fuzz.targets import TARGETS, Target

SPARE_MEMORY = 512 << 20
SECONDS = 10
"""For one example, of which all take milliseconds."""


def main(name: str, seed: int, count: int, directory: Path) -> int:
    """Run the examples, and say how many failed."""
    target = TARGETS[name]
    _read_seeds(target, directory)
    _limit_memory()
    failures: dict[str, str] = {}
    for number in range(seed, seed + count):
        (directory / "example").write_text(f"{name}: {number}")  # for who finds us dead
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        failure = _run(target, random.Random(number), directory / "files")
        faulthandler.cancel_dump_traceback_later()
        if failure:
            kind, text = failure
            failures.setdefault(kind, f"{name!r} example {number}: {text}")
    print("\n".join(failures.values()))
    return len(failures)


def _read_seeds(target: Target, directory: Path) -> None:
    """Read the files before any damage, which must succeed; what is imported is not what is limited."""
    for form in range(target.forms):
        target.read(target.seed(_fresh(directory / "files"), form))


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + SPARE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _fresh(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    return directory


def _run(target: Target, random_: random.Random, directory: Path) -> tuple[str, str] | None:
    """Where a failure came from, and what it says; None for none."""
    path = target.seed(_fresh(directory), random_.randrange(target.forms))
    target.damage(random_, path)
    try:
        target.read(path)
    except (ValueError, OSError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return "memory", text
        if str(path) in text and "\n" not in text:
            return None
        return _place(error), f"expected one line with the file's name, got {text[:300]!r}"
    except BaseException as error:  # of any kind: Rust's panics are no Exception
        last = traceback.format_exception_only(error)[-1].strip()
        return _place(error), f"{last[:300]} at {_place(error)}"
    return None


def _place(error: BaseException) -> str:
    """The last line of the package that the error came through, or of whatever there is."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "numbacalib" in frame.filename.rsplit("/tests/", 1)[0]]
    frame = (ours or frames)[-1]
    return f"{type(error).__name__} {'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno}"


if __name__ == "__main__":
    target_name, first, examples, where = sys.argv[1:]
    sys.exit(min(main(target_name, int(first), int(examples), Path(where)), 100))
