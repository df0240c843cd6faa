"""The residual stream's columns: a token's state, then other values that later blocks need.

Most decoders have only states. Small Gemma 4 models add a per-layer embedding of the token in each block,
and in their last blocks attend to keys and values of earlier ones: their stream also has the token's id and
those keys and values.
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
    """Return the number of columns of the stream."""
    lent = sum(2 * _width(config, source) for source in config.lenders)
    return config.hidden_size + bool(config.layer_input_size) + lent


def token_column(config: ModelConfig) -> Run:
    """Return the column of the token's id, in models with per-layer embeddings."""
    return config.hidden_size, config.hidden_size + 1


def lent_columns(config: ModelConfig, source: int) -> tuple[Run, Run]:
    """Return the columns of keys and of values that a block lends to later ones."""
    begin = config.hidden_size + bool(config.layer_input_size)
    begin += sum(2 * _width(config, other) for other in config.lenders if other < source)
    width = _width(config, source)
    return (begin, begin + width), (begin + width, begin + 2 * width)


def states_of(config: ModelConfig, hidden: Array) -> Array:
    """Return the states in a stream ``[..., stream_size]``: the stream itself if it has nothing else."""
    *_, width = hidden.shape
    size = config.hidden_size
    return hidden if width == size else column_range(hidden, 0, size)


@contextmanager
def written_states(config: ModelConfig, hidden: Array) -> Iterator[Array]:
    """Yield the states of a stream for changes in place, and write them back."""
    states = states_of(config, hidden)
    yield states
    if states is not hidden:
        put_columns(hidden, 0, states)


def _width(config: ModelConfig, index: int) -> int:
    heads, size = config.heads_of(index)
    return heads * size
