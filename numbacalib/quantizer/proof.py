"""The proof of a checkpoint: every tensor accounted for, what is stored read back, the loss computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.format import StoredLayers
from numbacalib.formats.registry import stored_format
from numbacalib.models import Checkpoint, Place, open_checkpoint, open_place
from numbacalib.models.safetensors_file import StoredTensor
from numbacalib.ops.matrix import to_host
from numbacalib.quantizer.evaluation import Evaluation, Subject, measure
from numbacalib.quantizer.text import read_sequences
from numbacalib.quantizer.work import Work
from numbacalib.terminal import RejectedError


class ProofError(RejectedError):
    """A checkpoint is not what it should be."""


@dataclass(frozen=True)
class Proof:
    """Findings about a checkpoint that was read back."""

    quantized: int
    """Linear layers that are read as codes."""
    copied: int
    """Tensors that are the source's to the bit."""
    changed: tuple[str, ...] = ()
    """Tensors that are not, such as norms that took up channel scales."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Tensors of the source's files that are left out, and why."""
    evaluation: Evaluation | None = None
    """With the weights as read, against the original; None where there was no text."""


def prove(
    source: Checkpoint,
    kept: Work,
    path: Path,
    held_out: NDArray[np.integer],
    place: Place,
    max_kl: float | None,
) -> Proof:
    """Compare a checkpoint that was just written with what was to be written, to the bit.

    Parameters
    ----------
    source : Checkpoint
        The original.
    kept : Work
        All its blocks, as they were quantized.
    path : Path
        The checkpoint.
    held_out : integer array [S, T]
        Sequences to evaluate on; none with S = 0.
    place : Place
        Where to do that.
    max_kl : float, optional
        Largest mean KL to the original, in nats a token.

    Raises
    ------
    ProofError
        Naming what differs.
    """
    try:
        written = open_checkpoint(path)
        layers = _stored_layers(written)
        accounted, changed = set(), {}
        for index in range(source.config.num_layers):
            block = kept.load(index)
            for name, weight in block.layers.items():
                if name not in layers or layers[name] != weight:
                    raise ProofError(f"{path}: {name}: other codes or scales than were chosen")
                accounted.add(f"{name}.weight")
            changed.update(block.vectors)
        others = [name for name in source.names() if name not in accounted]
        for name in others:
            expected = StoredTensor.of(changed[name]) if name in changed else source.stored(name)
            if name not in written.names() or not _equal(written.stored(name), expected):
                raise ProofError(f"{path}: {name}: not what was to be written")
        parts = {part for layer in layers for part in layers.tensors(layer)}
        if extra := [name for name in written.names() if name not in parts and name not in others]:
            raise ProofError(f"{path}: {extra[0]}: a tensor that the original does not have")
        evaluation = None
        if len(held_out):
            evaluation = measure(
                held_out, Subject.opened(path, place), Subject.opened(source.path, place)
            )
    except (ValueError, FloatingPointError) as error:
        raise ProofError(str(error)) from error
    _require_kl(path, evaluation, max_kl)
    copied = len(others) - len(changed)
    return Proof(len(layers), copied, tuple(changed), source.dropped, evaluation)


def verify(
    checkpoint: str | Path,
    *,
    against: str | Path | None = None,
    text: Sequence[str | Path] = (),
    max_kl: float | None = None,
    sequence_length: int = 512,
    samples: int | None = None,
    device: str = "auto",
) -> Proof:
    """Read all of a quantized checkpoint, whoever wrote it, and compare it with its original.

    Parameters
    ----------
    checkpoint : path
        A directory in one of `numbacalib.formats.FORMATS`.
    against : path, optional
        The original. Tensors that are neither quantized nor equal to it are told as changed.
    text : sequence of paths
        To evaluate on, with `against` for the KL too.
    max_kl : float, optional
        Largest mean KL to the original, in nats a token.
    sequence_length, samples, device
        As in `numbacalib.quantizer.evaluate`.

    Returns
    -------
    Proof

    Raises
    ------
    ProofError
        If a tensor of the original is missing or has another shape, a weight is not finite, or the KL is
        larger than it may be.
    ValueError, TypeError, OSError
        If an input does not fit, a damaged checkpoint among them.
    FloatingPointError
        As `numbacalib.quantizer.evaluate`.

    Examples
    --------
    >>> from numbacalib.quantizer import quantize, verify
    >>> _ = quantize("model", "quantized", method="rtn", bits=8, group_size=32)
    >>> proof = verify("quantized", against="model")
    >>> proof.quantized, proof.changed
    (14, ())
    """
    if max_kl is not None and not (against and text):
        raise ValueError("max_kl: expected a text and what to verify against with it")
    place = open_place(device)
    path = Path(checkpoint)
    written = open_checkpoint(path)
    layers = _stored_layers(written)
    for name, layer in layers.items():
        if not np.isfinite(to_host(layer.dequantize())).all():
            raise ProofError(f"{path}: {name}: weights that are not finite")
    original = None if against is None else open_checkpoint(against)
    copied, changed = _compared(written, layers, original) if original else (0, ())
    evaluation = None
    if text:
        subjects = [Subject.opened(each, place) for each in (path, against) if each is not None]
        tokens = read_sequences(subjects[0].checkpoint, text, sequence_length, samples)
        evaluation = measure(tokens, *subjects)
    _require_kl(path, evaluation, max_kl)
    dropped = original.dropped if original else {}
    return Proof(len(layers), copied, changed, dropped, evaluation)


def _compared(
    written: Checkpoint, layers: StoredLayers, original: Checkpoint
) -> tuple[int, tuple[str, ...]]:
    """Count the tensors that are equal in both, and name those that are not."""
    copied, changed = 0, []
    for name in original.names():
        layer = name.removesuffix(".weight")
        if layer in layers:
            shape: tuple[int, ...] = layers.shape(layer)
        elif name in written.names():
            shape = written.info(name).shape
            if _equal(written.stored(name), original.stored(name)):
                copied += 1
            else:
                changed.append(name)
        else:
            raise ProofError(f"{written.path}: {name}: missing")
        if shape != original.info(name).shape:
            raise ProofError(
                f"{written.path}: {name}: expected shape {list(original.info(name).shape)}, got "
                f"{list(shape)}"
            )
    return copied, tuple(changed)


def _stored_layers(checkpoint: Checkpoint) -> StoredLayers:
    form = stored_format(checkpoint)
    if form is None:
        raise ValueError(f"{checkpoint.path}: expected a quantized checkpoint, got a plain one")
    return form.layers(checkpoint)


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Return whether two tensors are the same to the bit."""
    return one[:2] == other[:2] and np.array_equal(one.data, other.data)


def _require_kl(path: Path, evaluation: Evaluation | None, max_kl: float | None) -> None:
    kl: Any = None if evaluation is None else evaluation.kl
    if max_kl is not None and not (kl is not None and kl <= max_kl):
        found = "none, since there was no text" if kl is None else f"{kl:.4g}"
        raise ProofError(
            f"{path}: expected a KL to the original of at most {max_kl:g} nats a token, got {found}"
        )
