"""Kullback-Leibler divergence of two models' predictions over a vocabulary that comes in parts."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.ops.divergence import cpu
from numbacalib.ops.matrix import from_host
from numbacalib.runtime.backend import call
from numbacalib.spec.decoder import LOWEST
from numbacalib.spec.divergence import LARGEST_P, LARGEST_Q


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.divergence import gpu

    return gpu


def new_state(rows: int, like: Any) -> Any:
    """Return the state of `rows` divergences before the first part, float64 [5, rows], where `like` is."""
    state = np.zeros((5, rows))
    state[[LARGEST_P, LARGEST_Q]] = LOWEST
    return from_host(state, like)


def add_scores(p: Any, q: Any, state: Any) -> None:
    """Add a part of the vocabulary to the divergence of each row: see `numbacalib.spec.divergence`.

    Parameters
    ----------
    p, q : float32 array [N, V'], C-contiguous
        Logits of the original model and of another, of the same tokens and entries.
    state : float64 array [5, N]
        From `new_state`; updated in place.
    """
    with call(cpu, _gpu, p=p, q=q, state=state) as (kernels, p, q, state):
        kernels.add_scores(p, q, state)


def divergences(state: Any) -> Any:
    """Divergence of q from p of each row in nats, float64 [N], once all parts are added."""
    with call(cpu, _gpu, state=state) as (kernels, state):
        return kernels.divergences(state)
