"""The order in which GPTQ quantizes a layer's input channels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ACT_ORDERS = ("none", "desc", "group_aware")


def column_orders(diagonals: NDArray, act_order: str, group_size: int) -> NDArray[np.int64]:
    """Return the order in which each layer's channels are quantized, a permutation a row: [E, K].

    Channels that are quantized early have more others left to compensate them, so the ones with the
    largest inputs, by the Hessians' diagonals [E, K], go first.

    - ``"desc"``: falling diagonal (the `desc_act` of the code that came with Frantar et al., 2022).
    - ``"group_aware"``: groups by their largest entry, and channels within each group, both falling;
      each group stays a run (Gafni et al., "Dual Precision Quantization for Efficient and Accurate
      Deep Neural Networks Inference", 2025).

    Equal entries keep their order.
    """
    if act_order == "desc":
        return np.stack([_falling(diagonal) for diagonal in diagonals])
    if act_order == "group_aware":
        groups = diagonals.reshape(len(diagonals), -1, group_size)
        within = np.argsort(-groups, axis=2, kind="stable")
        between = np.argsort(-groups.max(axis=2), axis=1, kind="stable")
        channels = within + group_size * np.arange(groups.shape[1])[:, None]
        return np.take_along_axis(channels, between[:, :, None], 1).reshape(diagonals.shape)
    raise ValueError(f"act_order: expected {', '.join(ACT_ORDERS)}, got {act_order!r}")


def _falling(values: NDArray) -> NDArray[np.int64]:
    """Sort indices by falling values [K]; equal ones keep their order.

    NumPy's sort that keeps no order of equal values takes a quarter of the time, and few have equal ones.
    """
    order = np.argsort(-values)
    found = values[order]
    if (found[1:] < found[:-1]).all():
        return order
    return np.argsort(-values, kind="stable")
