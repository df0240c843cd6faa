"""The files of a model: regular files only, with bounded reads and detection of changes."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["InputFiles", "parse_object"]

JSON_BYTES = 16 << 20
"""Longest JSON file that is read: 16 MiB, a hundred times a large model's config.json."""

_DEPTH = 32
_DISK_FAILS = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EREMOTEIO}


class _Stamp(NamedTuple):
    size: int
    mtime_ns: int


class InputFiles:
    """Reader of files that must not change during a run.

    Nothing is memory-mapped: truncating a mapped file kills the process (SIGBUS) instead of raising. Every
    read compares the file's size and modification time with those when it was first seen.
    """

    def __init__(self) -> None:
        self._stamps: dict[Path, _Stamp] = {}

    def watch(self, path: Path, limit: int | None = None) -> int:
        """Record a file's size and modification time, and return its size in bytes.

        Raises
        ------
        ValueError
            If the file does not exist, is not a regular file (a pipe, a device, a directory), has
            changed since it was first watched, or is longer than ``limit`` bytes.
        """
        self._compare(path, _status(path))
        size = self._stamps[path].size
        if limit is not None and size > limit:
            raise ValueError(f"{path}: expected at most {limit} bytes, got {size}")
        return size

    def read(self, path: Path, offset: int = 0, length: int | None = None) -> NDArray[np.uint8]:
        """Read ``length`` bytes from ``offset``, or to the end, as uint8 ``[length]``.

        Raises
        ------
        ValueError
            As `watch`, and if the file ends before, or the bytes do not fit in memory.
        OSError
            If the disk fails.
        """
        size = self.watch(path)
        length = max(0, size - offset) if length is None else length
        try:
            data = np.empty(length, dtype=np.uint8)
        except MemoryError:
            raise ValueError(f"{path}: {length} bytes of it do not fit into memory") from None
        done = 0
        try:
            with path.open("rb", buffering=0) as file:
                self._compare(path, os.fstat(file.fileno()))
                file.seek(offset)
                while done < length:
                    count = file.readinto(data[done:].data)
                    if not count:
                        raise ValueError(f"{path}: truncated, it ends at byte {offset + done}")
                    done += count
        except OSError as error:
            raise _refused(path, error) from None
        return data

    def read_bytes(self, path: Path, limit: int) -> bytes:
        """Read a whole file of at most ``limit`` bytes.

        Raises
        ------
        ValueError
            As `watch` and `read`.
        """
        self.watch(path, limit)
        return self.read(path).tobytes()

    def read_json(self, path: Path, limit: int = JSON_BYTES) -> dict[str, Any]:
        """Read a file that holds one JSON object, nested at most 32 deep.

        Raises
        ------
        ValueError
            As `read_bytes`, and as `parse_object`.
        """
        content = parse_object(self.read_bytes(path, limit), str(path))
        level: list[Any] = [content]
        for _ in range(_DEPTH):
            level = [item for value in level for item in _items(value)]
        if level:
            raise ValueError(f"{path}: expected JSON nested at most {_DEPTH} deep")
        return content

    def check_unchanged(self) -> None:
        """Check that no file seen so far has changed, by size and modification time.

        Raises
        ------
        ValueError
            If one was deleted, truncated, overwritten or replaced.
        """
        for path in self._stamps:
            self.watch(path)

    def stamps(self, root: Path) -> dict[str, list[int]]:
        """Size and modification time (ns) of every file seen so far, by path relative to `root`."""
        return {
            os.path.relpath(path, root): [stamp.size, stamp.mtime_ns]
            for path, stamp in self._stamps.items()
        }

    def _compare(self, path: Path, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path}: expected a regular file")
        now = _Stamp(status.st_size, status.st_mtime_ns)
        before = self._stamps.setdefault(path, now)
        if now != before:
            how = (
                f"{before.size} bytes then, {now.size} now"
                if now.size != before.size
                else "in time"
            )
            raise ValueError(f"{path}: the file has changed since it was opened ({how})")


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object in UTF-8 without duplicate keys.

    Raises
    ------
    ValueError
        One line that begins with ``where`` and describes the fault.
    """
    try:
        content = json.loads(str(data, "utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(f"{where}: not JSON that can be read, it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(content).__name__}")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:100]!r} comes twice")
    return result


def _items(value: Any) -> list[Any]:
    """Return the values in a JSON object or array; none for a scalar."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        found = "a link to a file that is gone" if path.is_symlink() else "none"
        raise ValueError(f"{path}: expected a file, found {found}") from None
    except OSError as error:
        raise _refused(path, error) from None


def _refused(path: Path, error: OSError) -> Exception:
    """Return the error of an unreadable file: OSError if the disk fails, since a retry may succeed."""
    kind = OSError if error.errno in _DISK_FAILS else ValueError
    return kind(f"{path}: cannot be read ({error.strerror})")
