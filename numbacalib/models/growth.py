"""Growth of queries with their position, beside what a rotary embedding does."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Growth"]


class Growth(NamedTuple):
    """Factor of queries at a position p: ``1 + rate log(1 + floor((p + first) / period))``.

    Nakanishi (2025), arXiv 2501.19399, as Llama 4 and Ministral 3 have it.
    """

    rate: float
    period: int
    first: int = 0
