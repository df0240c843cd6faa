"""The residual stream's columns: a token's state, and after it what later blocks need beside it.

Most decoders have states alone. Gemma 4's small ones add to each block a vector that comes from the token
itself, and attend in the last blocks to keys and values of earlier ones: so a token's number goes along,
and those keys and values, wherever states go.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numbacalib.models.config import ModelConfig
from numbacalib.ops.matrix import column_range, put_columns

__all__ = ["lent_columns", "states_of", "stream_size", "token_column", "written_states"]

Array = Any
Run = tuple[int, int]
"""First column, and the one after the last."""


def stream_size(config: ModelConfig) -> int:
    """Return how many numbers of a token go from block to block."""
    lent = sum(2 * _width(config, source) for source in config.lenders)
    return config.hidden_size + bool(config.layer_input_size) + lent


def token_column(config: ModelConfig) -> Run:
    """Return where a token's number is, in models of which each block adds something of it."""
    return config.hidden_size, config.hidden_size + 1


def lent_columns(config: ModelConfig, source: int) -> tuple[Run, Run]:
    """Return where the keys are, and the values, that a block lends to later ones."""
    begin = config.hidden_size + bool(config.layer_input_size)
    begin += sum(2 * _width(config, other) for other in config.lenders if other < source)
    width = _width(config, source)
    return (begin, begin + width), (begin + width, begin + 2 * width)


def states_of(config: ModelConfig, hidden: Array) -> Array:
    """Return the states of a stream ``[..., stream_size]``: itself where there is nothing else."""
    *_, width = hidden.shape
    size = config.hidden_size
    return hidden if width == size else column_range(hidden, 0, size)


@contextmanager
def written_states(config: ModelConfig, hidden: Array) -> Iterator[Array]:
    """Have the states of a stream, to change them in place."""
    states = states_of(config, hidden)
    yield states
    if states is not hidden:
        put_columns(hidden, 0, states)


def _width(config: ModelConfig, index: int) -> int:
    heads, size = config.heads_of(index)
    return heads * size
