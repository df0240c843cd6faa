"""Texts of any length as tokens, in the memory of a piece of them."""

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
"""Characters that two pieces share. Both must say the same about the middle half of them."""

_WORDS = re.compile(r"\w\W+\w")


class TextEncoder:
    """Tokenizes texts piece by piece, to the tokens of the whole, with a checkpoint's tokenizer.

    Two pieces overlap, and are joined between two tokens in the middle of the overlap, where both
    have the same tokens over the same characters. The whole is tokenized so, too:

    - A pre-tokenizer's pattern goes through a text from left to right and has no memory but where it
      is. The words of the first piece are those of the whole but near its end, and those of the
      second from where it has once ended a word where the first did. On either side of the join a
      word ends and another begins, so that no run (of spaces, of digits) crosses both.
    - Within a word, however long, two byte-pair encodings that share a token make one: no merge
      crosses a token's bounds in either (github/rust-gems, ``crates/bpe``, Corollary III).

    Where the pieces differ (a run of unknown characters that is one token, say) or have no such words
    they are made one, at worst the whole text. What no comparison sees is a tokenizer that counts
    from the beginning of the text (``FixedLength``), a pattern that looks hundreds of characters
    ahead, and a unigram model without words, whose best paths from afar may in theory never meet.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._tokenizer = checkpoint.tokenizer
        self._has_prefix = False
        self.prefix: list[int] = []
        """Special tokens before a text; known when a text has had a token."""

    def pieces(self, blocks: Iterable[str]) -> Iterator[NDArray[np.int32]]:
        """Tokens of the text that the blocks are, without special tokens.

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
                # Doubled, so that a text without any join takes no more than a few times its own.
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
    """A part of a text, as it is tokenized by itself; its tokens count from `first` on."""

    text: str
    encoding: Encoding
    ids: NDArray[np.int32]
    first: int = 0

    def token_at(self, position: int) -> int:
        """Index of the first token that ends after a character."""
        for at in range(position, len(self.text)):
            token = self.encoding.char_to_token(at)
            if token is not None:
                return int(token)
        return len(self.ids)

    def spans(self, tokens: range, begin: int) -> list[tuple[int, int]]:
        """First character of each token, and the one after its last, in a text that is at `begin`."""
        spans = (self.encoding.token_to_chars(token) for token in tokens)
        return [(begin + span[0], begin + span[1]) for span in spans if span is not None]


def _start(piece: _Piece) -> int:
    """Return where the next piece begins: before the last `OVERLAP` characters, and where a token does.

    A run of one character, as long as it may be, is so cut into the same tokens by both.
    """
    latest = max(0, len(piece.text) - OVERLAP)
    token = piece.encoding.char_to_token(latest)
    return latest if token is None else piece.spans(range(token, token + 1), 0)[0][0]


def _join(left: _Piece, right: _Piece, begin: int) -> tuple[int, int] | None:
    """Return how many tokens of `left` and of `right` come before the join; None for no join.

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
