"""Proof of a checkpoint: every tensor accounted for, stored values read back, the loss computed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.dequantized import dequantized
from numbacalib.formats.format import Format, StoredLayers
from numbacalib.formats.gguf import GGUF_FORMATS
from numbacalib.formats.registry import stored_format
from numbacalib.models import Checkpoint, Place, open_checkpoint, open_place
from numbacalib.models.gguf import GGUFCheckpoint
from numbacalib.models.safetensors_file import StoredTensor
from numbacalib.ops.matrix import to_host
from numbacalib.quantizer.evaluation import Evaluation, Subject, measure
from numbacalib.quantizer.text import read_sequences
from numbacalib.quantizer.work import Work
from numbacalib.terminal import RejectedError


class ProofError(RejectedError):
    """Error of a checkpoint that differs from the expected one."""


@dataclass(frozen=True)
class Proof:
    """Findings about a checkpoint that was read back."""

    quantized: int
    """Number of linear layers read as codes."""
    copied: int
    """Number of tensors equal to the source's: to the bit, or in value if a format has one type for all."""
    changed: tuple[str, ...] = ()
    """Tensors that differ, such as norms that absorbed channel scales."""
    rounded: tuple[str, ...] = ()
    """Tensors that the format rounds to nearest on a grid, such as embeddings in GGUF."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Tensors of the source's files that are left out, and why."""
    evaluation: Evaluation | None = None
    """Evaluation of the weights as read, against the original; None without a text."""


def prove(
    source: Checkpoint,
    kept: Work,
    form: Format,
    path: Path,
    held_out: NDArray[np.integer],
    place: Place,
    max_kl: float | None,
) -> Proof:
    """Compare a checkpoint that was just written with what it should hold, bit for bit.

    Parameters
    ----------
    source : Checkpoint
        The original.
    kept : Work
        All its quantized blocks.
    form : Format
        Of the checkpoint.
    path : Path
        Its directory.
    held_out : integer array [S, T]
        Sequences to evaluate on; none with S = 0.
    place : Place
        Where to evaluate.
    max_kl : float, optional
        Largest mean KL to the original, in nats per token.

    Raises
    ------
    ProofError
        Naming the tensor that differs.
    """
    try:
        written = open_checkpoint(_model_file(path))
        layers = form.layers(written)
        chosen, changed = _compared_with_kept(kept, layers, path)
        found = _compared(written, layers, source, chosen, changed, form)
        if found.other:
            raise ProofError(f"{path}: {found.other[0]}: other values than were to be written")
        known = {*source.names(), *(part for layer in layers for part in layers.tensors(layer))}
        if extra := [name for name in written.names() if name not in known]:
            raise ProofError(f"{path}: {extra[0]}: a tensor that the original does not have")
        evaluation = None
        if len(held_out):
            subjects = [Subject.opened(each, place) for each in (written.path, source.path)]
            evaluation = measure(held_out, *subjects)
    except (ValueError, FloatingPointError) as error:
        raise ProofError(str(error)) from error
    _require_kl(path, evaluation, max_kl)
    dropped = source.dropped | form.left_out(source)
    return Proof(len(chosen), found.copied, tuple(changed), found.rounded, dropped, evaluation)


def _compared_with_kept(
    kept: Work, layers: StoredLayers, path: Path
) -> tuple[set[str], dict[str, NDArray[Any]]]:
    """Compare layers with those that were chosen; return their names, and the vectors that changed."""
    names: set[str] = set()
    changed: dict[str, NDArray[Any]] = {}
    for block in kept.blocks():
        for name, weight in block.layers.items():
            if name not in layers or layers[name] != weight:
                raise ProofError(f"{path}: {name}: other codes or scales than were chosen")
        names |= block.layers.keys()
        changed |= block.vectors
    return names, changed


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
    """Read a whole quantized checkpoint, written by any program, and compare it with its original.

    Parameters
    ----------
    checkpoint : path
        A directory in one of `numbacalib.formats.FORMATS`.
    against : path, optional
        The original, or another quantized checkpoint, which is dequantized for the comparison. Tensors that
        are neither quantized nor equal to its own are reported as changed.
    text : sequence of paths
        To evaluate on, with `against` for the KL too.
    max_kl : float, optional
        Largest mean KL to the original, in nats per token.
    sequence_length, samples, device
        As in `numbacalib.quantizer.evaluate`.

    Returns
    -------
    Proof

    Raises
    ------
    ProofError
        If a tensor of the original is missing or has another shape, a weight is not finite, or the KL
        exceeds `max_kl`.
    ValueError, TypeError, OSError
        If an input does not fit, such as a damaged checkpoint.
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
        raise ValueError("max_kl: expected a text and a checkpoint to verify against with it")
    place = open_place(device)
    path = _model_file(Path(checkpoint))
    written = open_checkpoint(path)
    layers = _stored_layers(written)
    for name, layer in layers.items():
        if not np.isfinite(to_host(layer.dequantize())).all():
            raise ProofError(f"{path}: {name}: weights that are not finite")
    original = None if against is None else dequantized(open_checkpoint(against))
    found, form = _Comparison(0, (), ()), _gguf(written)
    dropped: dict[str, str] = {}
    if original is not None:
        found = _compared(written, layers, original, chosen=layers, form=form)
        dropped = original.dropped | ({} if form is None else form.left_out(original))
    evaluation = None
    if text:
        subjects = [Subject.opened(each, place) for each in (path, against) if each is not None]
        tokens = read_sequences(subjects[0].checkpoint, text, sequence_length, samples)
        evaluation = measure(tokens, *subjects)
    _require_kl(path, evaluation, max_kl)
    return Proof(len(layers), found.copied, found.other, (), dropped, evaluation)


class _Comparison(NamedTuple):
    """Tensors of an original, as a checkpoint has them."""

    copied: int
    rounded: tuple[str, ...]
    other: tuple[str, ...]


def _compared(
    written: Checkpoint,
    layers: StoredLayers,
    original: Checkpoint,
    chosen: Collection[str] = (),
    changed: Mapping[str, NDArray[Any]] | None = None,
    form: Format | None = None,
) -> _Comparison:
    """Find every tensor of the original, except `chosen` layers, which are already compared.

    `changed` holds the expected values of changed tensors, `form` is the format that was written, if known.
    """
    names = set(written.names())
    left_out = {} if form is None else form.left_out(original)
    copied, rounded, other = 0, [], []
    for name in original.names():
        if name in left_out:
            continue
        layer = name.removesuffix(".weight")
        shapes: tuple[tuple[int, ...], tuple[int, ...]]
        if layer in layers:
            shapes = layers.shape(layer), original.info(name).shape
            if layer not in chosen:
                rounded.append(name)
        elif name in names:
            own = (changed or {}).get(name)
            found = written.stored(name)  # of any type, and so without `info`
            expected = original.stored(name) if own is None else StoredTensor.of(own)
            if form is not None:
                expected = form.kept(original.config, name, expected)
            shapes = found.shape, expected.shape
            if not _same(found, expected):
                other.append(name)
            elif own is None:
                copied += 1
        else:
            raise ProofError(f"{written.path}: {name}: missing")
        if shapes[0] != shapes[1]:
            raise ProofError(
                f"{written.path}: {name}: expected shape {list(shapes[1])}, got {list(shapes[0])}"
            )
    return _Comparison(copied, tuple(rounded), tuple(other))


def _model_file(path: Path) -> Path:
    """Path by which an output is opened: the directory, or the GGUF file in it."""
    return next(iter(path.glob("*.gguf")), path)


def _gguf(checkpoint: Checkpoint) -> Format | None:
    """Return one of GGUF's formats for such a file: all leave out the same tensors."""
    return GGUF_FORMATS[0] if isinstance(checkpoint, GGUFCheckpoint) else None


def _stored_layers(checkpoint: Checkpoint) -> StoredLayers:
    form = stored_format(checkpoint) or _gguf(checkpoint)
    if form is not None:
        return form.layers(checkpoint)
    raise ValueError(f"{checkpoint.path}: expected a quantized checkpoint, got a plain one")


def _same(found: StoredTensor, expected: StoredTensor) -> bool:
    """Return whether two tensors are equal: bit for bit, or in value if their types differ."""
    if found.shape != expected.shape:
        return False
    if found.dtype_name == expected.dtype_name:
        return np.array_equal(found.data, expected.data)
    own, wanted = found.array(), expected.array()
    if own is None or wanted is None:
        return False
    return np.array_equal(own.astype(np.float64), wanted.astype(np.float64))


def _require_kl(path: Path, evaluation: Evaluation | None, max_kl: float | None) -> None:
    kl: Any = None if evaluation is None else evaluation.kl
    if max_kl is not None and not (kl is not None and kl <= max_kl):
        found = "none, since there was no text" if kl is None else f"{kl:.4g}"
        raise ProofError(
            f"{path}: expected a KL to the original of at most {max_kl:g} nats a token, got {found}"
        )
