"""Models on the Hugging Face hub, by id, such as ``HuggingFaceTB/SmolLM2-135M``."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*"]
"""Files to download; weights in other formats are not read."""


def local_path(model: str | Path) -> Path:
    """Return the local path of a model: the path itself if it exists, else the files of a hub id.

    The revision in ``id@revision`` is a branch, a tag or a commit. Files downloaded before come from the
    cache of the hub's client, also without a network.

    Raises
    ------
    FileNotFoundError
        If there is neither a path nor a model on the hub.
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
            f"{model}: no such file or directory, and not available on the Hugging Face hub: {reason}"
        ) from None


def revision_of(path: Path) -> str | None:
    """Commit of a model in the cache of the hub's client; None for any other."""
    return path.name if path.parent.name == "snapshots" else None
