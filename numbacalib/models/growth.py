"""Growth of queries with their position, in addition to a rotary embedding."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Growth"]


class Growth(NamedTuple):
    """Factor of queries at position p: ``1 + rate log(1 + floor((p + first) / period))``.

    Nakanishi (2025), arXiv 2501.19399, in the form of Llama 4 and Ministral 3.
    """

    rate: float
    period: int
    first: int = 0
