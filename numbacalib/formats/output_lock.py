"""Lock on an output path, which the system releases when the process ends in any way."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger("numbacalib")

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def locked(file: Path, output: Path) -> Iterator[bool]:
    """Hold the lock `file` during the ``with`` statement; it is created and removed.

    Yields
    ------
    bool
        False if the file system has no locks; other runs are not kept out then.

    Raises
    ------
    ValueError
        If another run holds it; the message names `output`.
    OSError
        If the file cannot be created.
    """
    descriptor, held = _take(file, output)
    try:
        yield held
    finally:
        with suppress(OSError):  # a remaining file does not lock anybody out
            file.unlink()
        os.close(descriptor)


def _take(file: Path, output: Path) -> tuple[int, bool]:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_open(file, descriptor):
                return descriptor, True
        except BlockingIOError:
            os.close(descriptor)
            raise ValueError(f"{output}: another run is writing to it") from None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                log.warning("%s: its file system has no locks; start one run at a time", output)
                return descriptor, False
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last holder removed it after we opened it: take the new one


def _is_open(file: Path, descriptor: int) -> bool:
    """Return whether `descriptor` is of the file that still has that name."""
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
