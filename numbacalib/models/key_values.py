"""Keys and values of the tokens that a sublayer has seen, for later tokens to attend to."""

from __future__ import annotations

from typing import Any

from numbacalib.ops.matrix import joined_columns

__all__ = ["KeyValues", "joined_tokens"]

Array = Any


class KeyValues:
    """Keys and values of an attention's earlier tokens.

    Attributes
    ----------
    length : int
        Tokens of each sequence so far.
    """

    def __init__(self) -> None:
        self.length = 0
        self._keys: Array = None
        self._values: Array = None

    def extended(self, keys: Array, values: Array) -> tuple[Array, Array]:
        """Add heads ``[S, T, H', ...]`` of further tokens, and return those of all."""
        if self.length:
            keys = joined_tokens(self._keys, keys)
            values = joined_tokens(self._values, values)
        self._keys, self._values, self.length = keys, values, keys.shape[1]
        return keys, values


def joined_tokens(left: Array, right: Array) -> Array:
    """Join heads ``[S, T, H, D]`` of the same sequences, one after the other."""
    sequences, before, *heads = left.shape
    both = joined_columns(left.reshape(sequences, -1), right.reshape(sequences, -1))
    return both.reshape(sequences, before + right.shape[1], *heads)
