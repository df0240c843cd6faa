"""Arguments are looked at once a call: what a method hands to its ops is known to be theirs."""

import threading

import cases
import numpy as np
import pytest

from numbacalib.methods import RangeSearch, gptq, gptq_batch, gptq_shared, rtn
from numbacalib.runtime import backend as dispatch

WEIGHT = cases.random_matrix(1, (6, 32), np.float32)
HESSIAN = cases.random_hessian(2, 32).astype(np.float32)
IMPORTANCE = np.diagonal(HESSIAN).copy()


class Own(np.ndarray):
    """A caller's own kind of NumPy array, which kernels do not take as it is."""


def own(array):
    return array.view(Own)


def reordered(**options):
    searched = {"search": RangeSearch(points=4), "importance": own(IMPORTANCE)}
    return gptq(own(WEIGHT), own(HESSIAN), **options, **searched, act_order="desc", shrinkage=0.1)


CALLS = {
    "rtn": lambda **options: rtn(own(WEIGHT), **options),
    "gptq": lambda **options: gptq(own(WEIGHT), own(HESSIAN), **options),
    "gptq, reordered": reordered,
    "gptq, static groups": lambda **options: gptq(
        own(WEIGHT), own(HESSIAN), **options, static_groups=True, act_order="group_aware"
    ),
    "gptq_shared": lambda **options: gptq_shared(
        {"q_proj": own(WEIGHT), "k_proj": own(WEIGHT[:2])}, own(HESSIAN), **options
    ),
    "gptq_batch": lambda **options: gptq_batch(
        own(np.stack([WEIGHT] * 3)), own(np.stack([HESSIAN] * 3)), **options
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_arguments_are_looked_at_once(name, monkeypatch):
    looks, lock, look = [], threading.Lock(), dispatch._interfaces

    def counted(arrays):
        with lock:
            looks.append(sorted(arrays))
        return look(arrays)

    monkeypatch.setattr(dispatch, "_interfaces", counted)
    CALLS[name](bits=4, group_size=8)
    assert len(looks) == 1, looks
