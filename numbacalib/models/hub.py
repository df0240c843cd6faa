"""Models of the Hugging Face hub by their ids, such as ``HuggingFaceTB/SmolLM2-135M``."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*"]
"""Weights in other forms are not read, and so not fetched."""


def local_path(model: str | Path) -> Path:
    """Return where a model is on this machine: a path that exists as it is, else the files of a hub id.

    ``id@revision`` is a branch, a tag or a commit. What was fetched before is taken from the cache of the
    hub's client, without a network too.

    Raises
    ------
    FileNotFoundError
        If there is neither.
    """
    path = Path(model)
    match = _ID.fullmatch(str(model))
    if path.exists() or not match:
        return path
    if find_spec("huggingface_hub") is None:
        raise FileNotFoundError(
            f"{model}: no such file or directory; to take it from the Hugging Face hub: pip install "
            "'numbacalib[hub]'"
        )
    from huggingface_hub import snapshot_download

    name, revision = match.groups()
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"{model}: no such file or directory, and not to be had from the Hugging Face hub: {reason}"
        ) from None


def revision_of(path: Path) -> str | None:
    """Commit of a model in the client's cache; None of any other."""
    return path.name if path.parent.name == "snapshots" else None
