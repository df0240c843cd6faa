"""Files of compiled kernels: where they are, when they are valid, how they are replaced.

A file is a digest, then what was compiled. The digest covers the contents and all that they depend on, so
a file that is damaged, cut or stale is one that does not match: it counts as absent and is replaced as a
whole. No folder is tested beforehand: one that cannot be read has no kernels, and one that cannot be
written, or is full, leaves the next to try. A folder that is only readable serves too, as in a container
whose kernels were compiled when its image was built.
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
"""Seconds that a file is waited for which another process makes: ten times as long as the slowest takes."""
POLL = 0.01
"""Seconds between two looks at a lock."""

log = logging.getLogger("numbacalib")

_making = threading.Lock()


def load(name: str, identity: bytes) -> bytes | None:
    """Return what `store` kept by this name for the same identity, or None."""
    for folder in folders():
        with suppress(OSError):
            contents = (folder / name).read_bytes()
            digest, payload = contents[:DIGEST_BYTES], contents[DIGEST_BYTES:]
            if digest == sha256(identity + payload).digest():
                return payload
    return None


def is_there(name: str) -> bool:
    """Return whether `store` kept something by this name, whether or not `load` takes it."""
    return any((folder / name).is_file() for folder in folders())


def store(name: str, identity: bytes, payload: bytes) -> None:
    """Keep a payload in the first folder that takes it; if none does, the user is told so, once."""
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
        + "; NUMBA_CACHE_DIR may name a better folder"
    )


def kept(name: str, identity: bytes, make: Callable[[], bytes]) -> bytes:
    """Return the file kept by this name for the same identity; make and keep it if there is none.

    One thread makes at a time, and of several processes one a file: two that need the same do not make it
    twice, unless the first takes longer than `PATIENCE`.
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
    """Hold the lock of a file that is to be made, where the system and its folder have locks.

    The system gives it back with the process, however that ends. Gives False where another process keeps it
    for longer than the seconds of `patience`.
    """
    folder = first_writable()
    file = None if fcntl is None or folder is None else folder / f"{name}.lock"
    with ExitStack() as stack:
        is_ours = True
        if file is not None:
            with suppress(OSError):  # made twice, then
                is_ours = _taken(stack.enter_context(file.open("wb")), patience)
        try:
            yield is_ours
        finally:
            if file is not None and is_ours:
                with suppress(OSError):
                    file.unlink()


def _taken(file: IO[bytes], patience: float) -> bool:
    """Take the lock of an open file, or return False once no time is left."""
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
    """Yield where kernels are looked for, in this order."""
    yield from _usual_folders()
    private = _private_folder(create=False)
    if private is not None:
        yield private


def first_writable() -> Path | None:
    """Return the first folder that can be written to, made if it was absent."""
    for folder in folders():
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return None


def _usual_folders() -> Iterator[Path]:
    """Yield ``NUMBA_CACHE_DIR`` where it is set; else the package's own folder, then the user's.

    What a folder of several installations holds is kept apart, so that they do not replace each other's.
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
    """Return the user's folder for caches, or None where the user has no home."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        return None
    return folder if folder.is_absolute() and folder.parent.is_dir() else None


def _private_folder(*, create: bool) -> Path | None:
    """Return a temporary folder that none but this user can have written to, or None.

    Its name is the same in every process, so that they share what they compile. Since anybody may have
    made a folder of that name, it must be the user's own and closed to others: kernels are run.
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
    """Replace a file as a whole, or leave it as it was: other processes read and write it meanwhile."""
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
    """Digest of a kernel's file, and of those whose functions and constants kernels are compiled from."""
    files = [kernel]
    for folder in ("linalg", "ops", "runtime", "spec"):
        files += sorted((PACKAGE / folder).rglob("*.py"))
    return sha256(b"".join(map(_file_digest, files))).digest()


@cache
def _file_digest(file: Path) -> bytes:
    return sha256(file.read_bytes()).digest()
