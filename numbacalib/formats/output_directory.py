"""An output directory that is there whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """Make a directory whose contents appear at `path` only once all of them are on the disk.

    The body of the ``with`` statement writes into the directory that it gets, a hidden sibling
    ``.<name>.partial-<random>``. At the end its files are synced and it is renamed to `path`. An
    exception removes it; a killed process leaves it behind, and nothing at `path`.

    Parameters
    ----------
    path : str or Path
        Absent or an empty directory. Missing parents are made.

    Yields
    ------
    Path
        The directory to write into.

    Raises
    ------
    ValueError
        If `path` is a file or a directory with something in it; nothing is touched.
    OSError
        If the disk refuses, in the body or while syncing.
    """
    path = Path(path).resolve()
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path}: expected a new or empty directory, found a file")
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(f"{path}: expected a new or empty directory, found one with files in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        yield partial
        for entry in partial.rglob("*"):
            _sync(entry)
        _sync(partial)
        partial.replace(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until a file's contents, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
