"""Samples of an ONNX model's inputs from a text, by the tokenizer beside the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.tokenizer import named_errors, read_tokenizer
from numbacalib.quantizer.text import evenly_spaced

if TYPE_CHECKING:
    from numbacalib.quantizer.settings import Settings

IDS, PAST = "input_ids", "past_key_values"
_TYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}


def text_samples(
    model: Path, text: Path, inputs: Sequence[Any], settings: Settings
) -> dict[str, NDArray[Any]]:
    """Return an array for each input of a model that reads text, by its name, samples first.

    Parameters
    ----------
    model : Path
        With ``tokenizer.json`` beside it.
    text : Path
        UTF-8.
    inputs : sequence of onnxruntime.NodeArg
        The model's.
    settings : Settings
        `samples` sequences of `sequence_length` are taken, evenly spaced; a length fixed by the model takes
        precedence.

    Raises
    ------
    ValueError
        If the file is no text or too short, there is no tokenizer, or the model has other inputs.
    """
    by_name = {each.name: each for each in inputs}
    if IDS not in by_name or len(by_name[IDS].shape) != 2:
        raise ValueError(
            f"calibration: expected a .npz of arrays named {', '.join(by_name)}: {model} does not read text"
        )
    length = by_name[IDS].shape[1]
    if not isinstance(length, int):
        length = settings.sequence_length
    ids = _sequences(model, text, length, settings.samples)
    return {name: _array_of(model, each, ids) for name, each in by_name.items()}


def _array_of(model: Path, each: Any, ids: NDArray[np.int64]) -> NDArray[Any]:
    """Values of one input for sequences [S, T]."""
    dtype = _TYPES.get(each.type)
    made = {
        IDS: ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
        "position_ids": np.broadcast_to(np.arange(ids.shape[1]), ids.shape),
    }
    if dtype is not None and each.name in made:
        return made[each.name].astype(dtype)
    if dtype is not None and each.name.startswith(PAST) and len(each.shape) == 4:
        sizes = [size if isinstance(size, int) else 0 for size in each.shape[1:]]
        return np.zeros((len(ids), *sizes), dtype)
    raise ValueError(
        f"{model}: expected inputs that a text gives ({', '.join(made)}, {PAST}), got {each.name} of "
        f"{each.type}: calibrate it on a .npz of arrays"
    )


def _sequences(model: Path, text: Path, length: int, samples: int) -> NDArray[np.int64]:
    """Cut a text into sequences [S, length], and take this many of them."""
    tokenizer = read_tokenizer(model.parent)
    try:
        content = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{text}: expected text in UTF-8 or a .npz file ({error})") from None
    with named_errors(model.parent / "tokenizer.json", "it fails on the text"):
        encoding = tokenizer.encode(content, add_special_tokens=False)
        framed = tokenizer.post_process(encoding) if len(encoding) else encoding
    tokens = np.array(encoding.ids, np.int64)
    own = np.array([part is not None for part in framed.sequence_ids], bool)
    first, last = (int(own.argmax()), int(own[::-1].argmax())) if len(own) else (0, 0)
    before, after = framed.ids[:first], framed.ids[len(framed.ids) - last :]
    room = length - first - last
    if room < 1 or len(tokens) // room < samples:
        raise ValueError(
            f"{text}: expected text for {samples} sequences of {length} tokens, {first + last} of them "
            f"special, got {len(tokens)} tokens"
        )
    cut = tokens[: len(tokens) // room * room].reshape(-1, room)
    cut = cut[evenly_spaced(len(cut), samples)]
    return np.hstack([np.tile(before, (samples, 1)), cut, np.tile(after, (samples, 1))]).astype(
        np.int64
    )
