"""Output directory that appears as a whole or not at all."""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from numbacalib.formats.durable import sync
from numbacalib.formats.output_lock import locked
from numbacalib.terminal import RejectedError

log = logging.getLogger("numbacalib")

LAST = "config.json"
"""File that every loader of a checkpoint needs: if files are moved one by one, it is the last."""

# files hidden inside the output do not have its name, since a volume may have several names
_INSIDE = "numbacalib"
_LOST_FOUND = "lost+found"  # a new file system has one: its mounted volume counts as empty
_NO_RENAME = {errno.EBUSY, errno.EXDEV, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@contextmanager
def new_directory(path: str | Path, *, clean: bool = False) -> Iterator[Path]:
    """Create a directory whose contents appear at `path` only once all of them are on the disk.

    The body of the ``with`` statement writes into a hidden directory. An exception in the body removes
    it; a killed process leaves it behind. At the end its files are synced, and then

    - if nothing was at `path`, the hidden directory, a sibling ``.<name>.partial-<random>``, is renamed;
    - if an empty directory was there, which may be a mount point and keeps its mode and owner, the files
      are moved into it from ``.numbacalib.partial-<random>`` inside it, `LAST` at the end.

    If that fails, the finished files are kept, and the error names their place. After a `RejectedError` in
    the body they are kept too, as ``<name>.failed-<random>``.

    Parameters
    ----------
    path : str or Path
        Absent or an empty directory. Missing parents are created.
    clean : bool, default False
        Remove leftovers of killed runs to the same `path`, which are otherwise reported in the log.

    Yields
    ------
    Path
        The directory to write into.

    Raises
    ------
    ValueError
        If `path` is a file or a directory with something in it, or if another process is writing
        to it; nothing is changed.
    RejectedError
        As raised in the body, with the name under which the files are kept.
    OSError
        If writing fails: before the body, in it, or while finishing.
    """
    path = Path(os.path.realpath(path))
    require_new_directory(path)
    room, name = _room_of(path)
    with existing(room), locked(room / f".{name}.lock", path) as alone:
        require_new_directory(path)  # another run may have finished before we got the lock
        if alone:
            _look_for_leftovers(room, name, clean)
        partial = room / f".{name}.partial-{secrets.token_hex(4)}"
        partial.mkdir()
        try:
            yield partial
        except RejectedError as error:
            failed = partial.rename(partial.with_name(f"{path.name}.failed-{partial.name[-8:]}"))
            text = str(error).replace(str(partial), str(failed))
            raise type(error)(f"{text}; what was written is kept in {failed}") from error
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _finish(partial, path)


def work_directory(path: str | Path) -> Path:
    """Return the directory for finished parts of an output, next to its partial directory."""
    room, name = _room_of(Path(os.path.realpath(path)))
    return room / f".{name}.work"


def _room_of(path: Path) -> tuple[Path, str]:
    """Directory for the hidden files of an unfinished output, and the name to use there."""
    return (path, _INSIDE) if path.is_dir() else (path.parent, path.name)


def require_new_directory(path: Path) -> None:
    """Check that `path` is absent or a directory with nothing in it.

    Leftovers of killed runs do not count, nor does the ``lost+found`` of a new file system.

    Raises
    ------
    ValueError
        If there is anything else.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path}: expected a new or empty directory, found a file")
    if path.is_dir():
        mine = re.compile(rf"{_partial_pattern(_INSIDE)}|\.{_INSIDE}\.(lock|work)")
        others = [
            entry.name
            for entry in path.iterdir()
            if entry.name != _LOST_FOUND and not mine.fullmatch(entry.name)
        ]
        if others:
            raise ValueError(
                f"{path}: expected a new or empty directory, found one with files in it, "
                f"such as {min(others)}"
            )


def _partial_pattern(name: str) -> str:
    return rf"\.{re.escape(name)}\.partial-[0-9a-f]{{8}}"


@contextmanager
def existing(directory: Path) -> Iterator[None]:
    """Create a directory and its parents; after an exception those still empty are removed again."""
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    nearest = missing[-1].parent if missing else directory
    if not nearest.is_dir():
        raise ValueError(f"{nearest}: expected a directory, found a file")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):  # not empty, or not created yet
            for each in missing:
                each.rmdir()
        raise


def _look_for_leftovers(room: Path, name: str, clean: bool) -> None:
    """Report or remove partial directories; the caller has the lock, so no process writes to them."""
    pattern = re.compile(_partial_pattern(name))
    found = sorted(entry for entry in room.iterdir() if pattern.fullmatch(entry.name))
    if not found:
        return
    names = ", ".join(entry.name for entry in found)
    if clean:
        for entry in found:
            shutil.rmtree(entry)
        log.warning("removed leftovers of killed runs in %s: %s", room, names)
    else:
        log.warning("leftovers of killed runs in %s: %s (--clean removes them)", room, names)


def _finish(partial: Path, path: Path) -> None:
    """Sync the written files and move them to `path`; they are kept after any failure."""
    try:
        for entry in (*partial.rglob("*"), partial):
            sync(entry)
        _publish(partial, path)
        for directory in (path, path.parent):
            sync(directory)
    except BaseException as error:
        text = (
            f"{path}: {str(error) or 'interrupted'}; all files are kept in {_kept(partial, path)}"
        )
        if isinstance(error, (OSError, ValueError)):
            raise OSError(text) from error
        error.args = (text,)
        raise


def _publish(partial: Path, path: Path) -> None:
    """Rename `partial` to `path`, or move its entries if that is impossible."""
    if partial.parent != path:
        try:
            partial.replace(path)
        except OSError as error:
            if error.errno not in _NO_RENAME:
                raise
            path.mkdir(exist_ok=True)
        else:
            return
    require_new_directory(path)  # files that appeared meanwhile must not be overwritten
    entries = sorted(partial.iterdir(), key=lambda entry: (entry.name == LAST, entry.name))
    try:
        for entry in entries:
            entry.replace(path / entry.name)
    except BaseException:
        for entry in reversed(entries):  # the last first: `path` never looks complete
            if not entry.exists():
                (path / entry.name).replace(entry)
        raise
    partial.rmdir()


def _kept(partial: Path, path: Path) -> Path:
    """Keep the finished files under a name that no later run treats as a leftover; return their place."""
    if not partial.exists() or not any(partial.iterdir()):
        return path
    kept = partial.with_name(f"{path.name}.finished-{partial.name[-8:]}")
    try:
        return partial.rename(kept)
    except OSError:
        return partial
