"""Tokenizers without truncation and padding, whose errors name the file.

Only ``tokenizer.json`` is used, as in transformers 5: its template says which special tokens go around a
text; ``add_bos_token`` and ``add_eos_token`` of ``tokenizer_config.json`` are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from numbacalib.runtime.extras import extra

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

__all__ = ["leading_tokens", "named_errors", "read_tokenizer"]

# Files that transformers can convert to a tokenizer.json.
_OTHER_FILES = ("tekken.json", "tokenizer.model", "tiktoken.model", "vocab.json")


def read_tokenizer(directory: Path) -> Tokenizer:
    """Read ``tokenizer.json`` of a checkpoint.

    Truncation and padding saved with it are for batches of short texts; transformers also resets them
    unless requested. Dropout of merges is for training.

    Raises
    ------
    ValueError
        If there is none, or it is damaged.
    """
    with extra("models"):
        from tokenizers import Tokenizer, models

    file = directory / "tokenizer.json"
    if not file.is_file():
        others = [name for name in _OTHER_FILES if (directory / name).is_file()]
        found = f"{others[0]}, from which transformers' save_pretrained makes one" if others else ""
        raise ValueError(f"{directory}: expected a tokenizer.json, found {found or 'none'}")
    with named_errors(file, "not a tokenizer"):
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if isinstance(tokenizer.model, models.BPE):
            tokenizer.model.dropout = None
    return tokenizer


@contextmanager
def named_errors(file: Path, what: str = "") -> Iterator[None]:
    """Turn any error of the package tokenizers into a ValueError that names a file.

    The package raises bare Exception; if its Rust code panics, PyO3 raises a class that derives from
    BaseException and that no module exports.
    """
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        text = " ".join(str(error).split())
        raise ValueError(f"{file}: {what} ({text})" if what else f"{file}: {text}") from None


def leading_tokens(tokenizer: Tokenizer, encoding: Encoding) -> list[int]:
    """Return the special tokens that the tokenizer's template puts before a text.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
    encoding : tokenizers.Encoding
        Encoding of any text that has tokens, without special tokens.
    """
    framed = tokenizer.post_process(encoding)
    return list(framed.ids[: framed.sequence_ids.index(0)])
