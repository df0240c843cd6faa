"""Atomic writes of files that are on the disk once a call returns, even if the power fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES}


def sync(path: Path) -> None:
    """Wait until a file's contents, or a directory's entries, are on the disk.

    File systems that cannot sync directories, and directories that may not be read, are ignored.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` create a file that appears at `path` when all of it is on the disk.

    Raises
    ------
    OSError
        If writing fails; an earlier file at `path` is unchanged then.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        write(partial)
        sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)
