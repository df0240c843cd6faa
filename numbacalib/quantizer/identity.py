"""Identity of a run: everything that its output depends on, to compare with another run's."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import numbacalib
from numbacalib.models import Checkpoint, Place
from numbacalib.models.input_files import InputFiles
from numbacalib.quantizer.settings import Settings

_PACKAGES = ("numba", "numpy", "scipy", "numba-cuda", "cupy-cuda13x")
"""Packages whose versions may change the last bit."""
_MOST = 5
"""Most differences that a message names."""


def identity_of(
    checkpoint: Checkpoint, place: Place, tokens: NDArray[np.integer] | None, **others: Any
) -> dict[str, Any]:
    """Return everything that a run's output depends on, as JSON values.

    The model's files are identified by size and modification time, as a run checks that they do not change:
    reading all weights before the first block would take longer than a GPU takes to quantize them. The text
    is identified by its tokens, so that its files may move.

    Parameters
    ----------
    checkpoint : Checkpoint
    place : Place
    tokens : integer array [S, T] or None
        Of the calibration text.
    **others
        Further dependencies, by the names that messages use.
    """
    root = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    text = None
    if tokens is not None:
        digest = hashlib.sha256(np.ascontiguousarray(tokens, np.int64).data).hexdigest()
        text = {"sequences": tokens.shape, "tokens": digest}
    found = {
        "version": {"numbacalib": numbacalib.__version__, **_versions()},
        "device": place.name.partition(":")[0],
        **others,
        "model": checkpoint.files.stamps(root),
        "text": text,
    }
    return dict(json.loads(json.dumps(found)))


def settings_as_json(settings: Settings) -> dict[str, Any]:
    """Return settings by name, as JSON values."""
    return asdict(settings) | {"scale_dtype": np.dtype(settings.scale_dtype).name}


def stamps_of(**paths: str | Path | None) -> dict[str, dict[str, list[int]] | None]:
    """Sizes and modification times of files, or of the files in directories, by argument name."""
    return {name: None if path is None else _stamps(Path(path)) for name, path in paths.items()}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the first few differences of two identities, worded for an error."""
    was, own = _flat(before), _flat(now)
    different = [
        f"{key} was {was.get(key, 'not there')}, is {own.get(key, 'not there')}"
        for key in dict.fromkeys([*was, *own])
        if was.get(key) != own.get(key)
    ]
    if len(different) > _MOST:
        different[_MOST:] = [f"and {len(different) - _MOST} more"]
    return different


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Values of nested mappings by their joined keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{above} {key}".lstrip()
        found |= _flat(value, name) if isinstance(value, Mapping) else {name: value}
    return found


def _stamps(path: Path) -> dict[str, list[int]]:
    files = InputFiles()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        files.watch(file)
    return files.stamps(path if path.is_dir() else path.parent)


def _versions() -> dict[str, str]:
    installed = {}
    for name in _PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
