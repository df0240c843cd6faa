"""Writer of statistics."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

from numpy.typing import NDArray

from numbacalib.runtime.extras import extra


def save_tensors(
    path: str | Path, tensors: Mapping[str, NDArray], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file (extra `models`), with the permissions that the umask leaves.

    Raises
    ------
    OSError
        If writing fails; no new file is then left at `path`.
    """
    with extra("models"):
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

    path = Path(path)
    new = not path.exists()
    # safetensors 0.8 replaces it with a file that only its owner may read
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        if new:
            path.unlink()
        raise OSError(f"{path}: {error}") from None
    path.chmod(mode)
