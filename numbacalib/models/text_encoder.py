"""Tokenization of texts of any length, with the memory of one piece."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.checkpoint import Checkpoint
from numbacalib.models.tokenizer import leading_tokens, named_errors

if TYPE_CHECKING:
    from tokenizers import Encoding

__all__ = ["OVERLAP", "TextEncoder"]

OVERLAP = 2048
"""Characters that two pieces share. Both must have the same tokens in the middle half of them."""

_WORDS = re.compile(r"\w\W+\w")


class TextEncoder:
    """Tokenizer of texts piece by piece, with the same tokens as for the whole text.

    Two pieces overlap, and are joined between two tokens in the middle of the overlap, where both have the
    same tokens over the same characters. The whole text then has these tokens too:

    - A pre-tokenizer's pattern scans a text from left to right and keeps no state but its position. The
      first piece has the words of the whole text except near its end; the second has them from the first
      word end on that both pieces share. A word ends and another begins on either side of the join, so
      that no run (of spaces, of digits) crosses both.
    - Within a word of any length, two byte-pair encodings that share a token can be joined at it: no merge
      crosses a token's bounds in either (github/rust-gems, ``crates/bpe``, Corollary III).

    If the pieces differ (for example by a run of unknown characters that is one token) or have no such
    words, they are merged into one, at worst the whole text. The comparison cannot detect a tokenizer that
    counts from the beginning of the text (``FixedLength``), a pattern that looks hundreds of characters
    ahead, or a unigram model without words, whose best paths may in theory never meet.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._tokenizer = checkpoint.tokenizer
        self._has_prefix = False
        self.prefix: list[int] = []
        """Special tokens before a text; set once a text has had a token."""

    def pieces(self, blocks: Iterable[str]) -> Iterator[NDArray[np.int32]]:
        """Yield the tokens of the concatenated blocks, without special tokens.

        Raises
        ------
        ValueError
            If the tokenizer fails, or gives a token that is not below the model's ``vocab_size``.
        """
        piece = None
        blocks = iter(blocks)
        for block in blocks:
            if piece is None:
                piece = self._piece(block)
                continue
            begin = _start(piece)
            following = self._piece(piece.text[begin:] + block)
            join = _join(piece, following, begin)
            if join is not None:
                yield piece.ids[piece.first : join[0]]
                piece = following._replace(first=join[1])
            else:
                # doubling bounds the total work on a text without joins
                text = piece.text + block
                while len(text) < 2 * len(piece.text) and (block := next(blocks, "")):
                    text += block
                piece = self._piece(text)._replace(first=piece.first)
        if piece is not None:
            yield piece.ids[piece.first :]

    def _piece(self, text: str) -> _Piece:
        path, limit = self._checkpoint.path, self._checkpoint.config.vocab_size
        with named_errors(path, "its tokenizer fails on the text"):
            encoding: Encoding = self._tokenizer.encode(text, add_special_tokens=False)
            if not self._has_prefix and len(encoding):
                self.prefix = leading_tokens(self._tokenizer, encoding)
                self._has_prefix = True
        ids = np.array(encoding.ids, np.int64)
        largest = max([*self.prefix, int(ids.max(initial=0))])
        if largest >= limit:
            raise ValueError(
                f"{path}: expected tokens below vocab_size, {limit}, its tokenizer gives {largest}"
            )
        return _Piece(text, encoding, ids.astype(np.int32))


class _Piece(NamedTuple):
    """A part of a text, tokenized alone; its tokens before `first` belong to the piece before."""

    text: str
    encoding: Encoding
    ids: NDArray[np.int32]
    first: int = 0

    def token_at(self, position: int) -> int:
        """Return the index of the first token that ends after a character."""
        for at in range(position, len(self.text)):
            token = self.encoding.char_to_token(at)
            if token is not None:
                return int(token)
        return len(self.ids)

    def spans(self, tokens: range, begin: int) -> list[tuple[int, int]]:
        """Return first and end characters of tokens, counted in a text where the piece is at `begin`."""
        spans = (self.encoding.token_to_chars(token) for token in tokens)
        return [(begin + span[0], begin + span[1]) for span in spans if span is not None]


def _start(piece: _Piece) -> int:
    """Return the begin of the next piece: that of a token, at or before the last `OVERLAP` characters.

    Both pieces then split a run of one character, of any length, into the same tokens.
    """
    latest = max(0, len(piece.text) - OVERLAP)
    token = piece.encoding.char_to_token(latest)
    return latest if token is None else piece.spans(range(token, token + 1), 0)[0][0]


def _join(left: _Piece, right: _Piece, begin: int) -> tuple[int, int] | None:
    """Return the numbers of tokens of `left` and `right` before their join; None if there is none.

    `right` begins at character `begin` of `left`.
    """
    length = len(left.text) - begin
    if length < OVERLAP:
        return None
    low, middle, high = (begin + length * quarter // 4 for quarter in (1, 2, 3))
    ours = range(left.token_at(low), left.token_at(high))
    theirs = range(right.token_at(low - begin), right.token_at(high - begin))
    join = left.token_at(middle)
    if (
        join in ours
        and join >= left.first
        and _WORDS.search(left.text, low, middle)
        and _WORDS.search(left.text, middle, high)
        and np.array_equal(left.ids[ours.start : ours.stop], right.ids[theirs.start : theirs.stop])
        and left.spans(ours, 0) == right.spans(theirs, begin)
    ):
        return join, theirs[ours.index(join)]
    return None
