"""Quantized layers outside of the blocks, on request or by a format: head and embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from numbacalib.formats.format import Format
from numbacalib.models import EMBEDDINGS, Checkpoint
from numbacalib.models.layer_tensors import HEAD
from numbacalib.quantizer.settings import Settings

_HEAD, _EMBEDDINGS = (name.removesuffix(".weight") for name in (HEAD, EMBEDDINGS))


def head_of(checkpoint: Checkpoint) -> str:
    """Name of the layer that serves as a model's head: the embeddings, if they are tied."""
    return _EMBEDDINGS if checkpoint.config.tie_word_embeddings else _HEAD


def outer_layers(
    checkpoint: Checkpoint, settings: Settings, formats: Sequence[Format]
) -> list[str]:
    """Names of the layers outside of the blocks that are to be quantized.

    Raises
    ------
    ValueError
        If a format does not hold one.
    """
    head = head_of(checkpoint)
    asked = {"lm_head": head} if settings.lm_head else {}
    if settings.embeddings:
        asked["embeddings"] = _EMBEDDINGS
    for option, layer in asked.items():
        kind = {_HEAD: "a head", _EMBEDDINGS: "embeddings"}[layer]
        tied = ", which are the head of this model too" if head == layer == _EMBEDDINGS else ""
        for form in formats:
            if not form.holds(layer):
                raise ValueError(
                    f"{option}: expected formats that store {kind} quantized{tied}, got {form.name}"
                )
    found = list(asked.values())
    for form in formats:
        if form.own_head and settings.skips(head):
            raise ValueError(f"skip: expected layers of blocks with {form.name}, got {head}")
        found += [head] * form.own_head
    return list(dict.fromkeys(found))


def is_outer(layer: str) -> bool:
    """Return whether a layer is outside of all blocks."""
    return layer in (_HEAD, _EMBEDDINGS)
