"""Fingerprint of what statistics were collected from: a model's configuration and hashes of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from numbacalib.models import EMBEDDINGS, Checkpoint, Decoder
from numbacalib.quantizer.progress import Progress

FILE = "model.json"
"""Name of the fingerprint beside the statistics."""


def hash_tensors(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Shape, dtype and SHA-256 of tensors, by name."""
    found = {}
    for name in names:
        values = np.ascontiguousarray(checkpoint.tensor(name))
        digest = hashlib.sha256(values.reshape(-1).view(np.uint8).data).hexdigest()
        found[name] = {**_form(checkpoint, name), "sha256": digest}
    return found


def write_fingerprint(
    directory: Path, checkpoint: Checkpoint, tensors: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write what `require_same_model` compares; `tensors` as `hash_tensors` found them."""
    content = {"config": _config(checkpoint), "tensors": tensors}
    text = json.dumps(content, indent=1) + "\n"
    (directory / FILE).write_text(text, encoding="utf-8")


def require_same_model(directory: Path, checkpoint: Checkpoint, decoder: Decoder) -> None:
    """Compare a model with the one that statistics were collected from, cheapest checks first.

    Only inputs of the statistics count, so neither the output head nor the tokenizer is compared.

    Raises
    ------
    ValueError
        If they differ, naming the difference, or the directory has no fingerprint.
    """
    file = directory / FILE
    config, tensors = _read(file)
    other = f"{file}: the statistics are of another model than {checkpoint.path}"
    own = _config(checkpoint)
    for key in own | config:
        if own.get(key) != config.get(key):
            raise ValueError(f"{other}: {key} was {config.get(key)!r}, is {own.get(key)!r}")
    names = read_tensors(decoder)
    for name in names:
        was = {key: value for key, value in tensors.get(name, {}).items() if key != "sha256"}
        if was != _form(checkpoint, name):
            raise ValueError(f"{other}: {name} was {was or None}, is {_form(checkpoint, name)}")
    with Progress(len(names)) as progress:
        for name in names:
            progress.show(f"comparing {name}")
            if hash_tensors(checkpoint, [name])[name] != tensors[name]:
                raise ValueError(f"{other}: {name} has other values")
            progress.step()


def read_tensors(decoder: Decoder) -> list[str]:
    """Names of all tensors that statistics depend on."""
    blocks = (decoder.block_tensors(index) for index in range(decoder.config.num_layers))
    return [EMBEDDINGS, *(name for block in blocks for name in block)]


def _form(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    info = checkpoint.info(name)
    return {"shape": list(info.shape), "dtype": info.dtype.name}


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the configuration as it is read back from JSON."""
    config: dict[str, Any] = json.loads(json.dumps(asdict(checkpoint.config)))
    del config["tie_word_embeddings"]  # concerns only the output head
    return config


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if not file.is_file():
        raise ValueError(
            f"{file.parent}: expected {file.name}, which identifies the model of the statistics, found "
            "none: collect them again"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        config, tensors = content["config"], content["tensors"]
        if not all(isinstance(part, dict) for part in (config, tensors, *tensors.values())):
            raise TypeError("objects of config and tensors")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file}: expected what collect writes ({error})") from None
    return config, tensors
