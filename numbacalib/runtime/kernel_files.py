"""Files of compiled kernels: their folders, validity and replacement.

A file is a digest followed by the compiled code. The digest covers the contents and all their dependencies,
so a damaged, cut or stale file does not match: it counts as absent and is replaced as a whole. No folder is
tested beforehand: an unreadable one has no kernels, and if one cannot be written, or is full, the next is
tried. A read-only folder works too, as in a container whose kernels were compiled when its image was built.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import IO

from numba import config

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

PACKAGE = Path(__file__).parent.parent
DIGEST_BYTES = sha256().digest_size
PATIENCE = 60.0
"""Seconds to wait for a file that another process makes: ten times the longest compilation."""
POLL = 0.01
"""Seconds between two attempts to take a lock."""

log = logging.getLogger("numbacalib")

_making = threading.Lock()


def load(name: str, identity: bytes) -> bytes | None:
    """Return the payload that `store` kept by this name for the same identity, or None."""
    for folder in folders():
        with suppress(OSError):
            contents = (folder / name).read_bytes()
            digest, payload = contents[:DIGEST_BYTES], contents[DIGEST_BYTES:]
            if digest == sha256(identity + payload).digest():
                return payload
    return None


def is_there(name: str) -> bool:
    """Return whether `store` kept a file by this name, even if `load` does not accept it."""
    return any((folder / name).is_file() for folder in folders())


def store(name: str, identity: bytes, payload: bytes) -> None:
    """Keep a payload in the first writable folder; if there is none, warn the user once."""
    contents = sha256(identity + payload).digest() + payload
    usual = list(_usual_folders())
    for folder in usual:
        if _written(folder, name, contents):
            return
    private = _private_folder(create=True)
    kept = private is not None and _written(private, name, contents)
    _warn_once(
        f"compiled kernels cannot be written to {' or '.join(map(str, usual))}: "
        + (f"they are kept in {private}" if kept else "every process compiles its own")
        + "; set NUMBA_CACHE_DIR to a writable folder"
    )


def kept(name: str, identity: bytes, make: Callable[[], bytes]) -> bytes:
    """Return the file kept by this name for the same identity; make and keep it if there is none.

    One thread of a process makes a file at a time, and one of several processes each file: two that need
    the same do not make it twice, unless the first takes longer than `PATIENCE`.
    """
    payload = load(name, identity)
    if payload is None:
        with _making, _locked(name, PATIENCE):
            payload = load(name, identity)
            if payload is None:
                payload = make()
                store(name, identity, payload)
    return payload


def make_unless_begun(name: str, identity: bytes, make: Callable[[], bytes]) -> None:
    """Make and keep a file by this name, unless there is one, or another process is making it."""
    if load(name, identity) is not None:
        return
    with _making, _locked(name, 0) as is_ours:
        if is_ours and load(name, identity) is None:
            store(name, identity, make())


@contextmanager
def _locked(name: str, patience: float) -> Iterator[bool]:
    """Hold the lock of a file that is to be made, if the system and its folder have locks.

    The system releases it when the process ends in any way. Yields False if another process still holds it
    after `patience` seconds.
    """
    folder = first_writable()
    file = None if fcntl is None or folder is None else folder / f"{name}.lock"
    with ExitStack() as stack:
        is_ours = True
        if file is not None:
            with suppress(OSError):  # without a lock the file may be made twice
                is_ours = _taken(stack.enter_context(file.open("wb")), patience)
        try:
            yield is_ours
        finally:
            if file is not None and is_ours:
                with suppress(OSError):
                    file.unlink()


def _taken(file: IO[bytes], patience: float) -> bool:
    """Take the lock of an open file, or return False after `patience` seconds."""
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(POLL)


def folders() -> Iterator[Path]:
    """Yield the folders in which kernels are searched, in order."""
    yield from _usual_folders()
    private = _private_folder(create=False)
    if private is not None:
        yield private


def first_writable() -> Path | None:
    """Return the first writable folder, created if it was absent."""
    for folder in folders():
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return None


def _usual_folders() -> Iterator[Path]:
    """Yield ``NUMBA_CACHE_DIR`` if it is set; otherwise the package's own folder, then the user's.

    In a folder that installations share, each has its own subfolder, so that none replaces another's files.
    """
    installation = f"numbacalib-{sha256(str(PACKAGE).encode()).hexdigest()[:16]}"
    if config.CACHE_DIR:
        yield Path(config.CACHE_DIR, installation)
        return
    yield PACKAGE / "__pycache__"
    user = _user_folder()
    if user is not None:
        yield user / installation


def _user_folder() -> Path | None:
    """Return the user's folder for caches, or None if the user has no home."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        return None
    return folder if folder.is_absolute() and folder.parent.is_dir() else None


def _private_folder(*, create: bool) -> Path | None:
    """Return a temporary folder that only this user can have written to, or None.

    Its name is the same in every process, so that they share compiled kernels. Anybody may have created a
    folder of that name, and kernels are executed: so it must be the user's own and closed to others.
    """
    if not hasattr(os, "getuid"):  # on Windows, where users have homes
        return None
    with suppress(OSError):
        folder = Path(tempfile.gettempdir(), f"numbacalib-{os.getuid()}")
        if create:
            folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        closed = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
        if closed and status.st_uid == os.getuid():
            return folder
    return None


def _written(folder: Path, name: str, contents: bytes) -> bool:
    """Replace a file as a whole or not at all: other processes may read and write it meanwhile."""
    partial = folder / f"{name}.{uuid.uuid4().hex}"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(contents)
            partial.replace(folder / name)
        finally:
            partial.unlink(missing_ok=True)
        return True
    return False


@cache
def _warn_once(message: str) -> None:
    log.warning(message)


@cache
def sources(kernel: Path) -> bytes:
    """Digest of a kernel's file, and of all files whose functions and constants kernels use."""
    files = [kernel]
    for folder in ("linalg", "ops", "runtime", "spec"):
        files += sorted((PACKAGE / folder).rglob("*.py"))
    return sha256(b"".join(map(_file_digest, files))).digest()


@cache
def _file_digest(file: Path) -> bytes:
    return sha256(file.read_bytes()).digest()
