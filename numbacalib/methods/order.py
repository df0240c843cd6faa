"""The order in which GPTQ quantizes a layer's input channels."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.ops.falling_order import ColumnOrders, falling_order
from numbacalib.ops.falling_order.cpu import places
from numbacalib.ops.matrix import diagonals, from_host, to_host
from numbacalib.runtime.backend import arrays_of_one_device

ACT_ORDERS = ("none", "desc", "group_aware")


def column_orders(hessians: Any, act_order: str, group_size: int) -> ColumnOrders | None:
    """Return the order in which each layer's channels are quantized, on the device of the Hessians.

    Channels that are quantized early have more others left to compensate them, so the ones with the
    largest inputs, by the diagonals of the Hessians [E, K, K], go first.

    - ``"none"``: natural order, returned as None.
    - ``"desc"``: falling diagonal (the `desc_act` of the code that came with Frantar et al., 2022).
    - ``"group_aware"``: groups by their largest entry, and channels within each group, both falling;
      each group stays a run (Gafni et al., "Dual Precision Quantization for Efficient and Accurate
      Deep Neural Networks Inference", 2025).

    Equal entries keep their order.
    """
    if act_order == "none":
        return None
    if act_order == "desc":
        return falling_order(hessians, group_size)
    if act_order == "group_aware":
        spread = to_host(diagonals(hessians))
        groups = spread.reshape(len(spread), -1, group_size)
        within = np.argsort(-groups, axis=2, kind="stable")
        between = np.argsort(-groups.max(axis=2), axis=1, kind="stable")
        channels = within + group_size * np.arange(groups.shape[1])[:, None]
        order = np.take_along_axis(channels, between[:, :, None], 1).reshape(spread.shape)
        found = ColumnOrders(order, places(order), order // group_size)
        there = {name: from_host(array, hessians) for name, array in found._asdict().items()}
        with arrays_of_one_device(**there) as arrays:
            return ColumnOrders(*arrays)
    raise ValueError(f"act_order: expected {', '.join(ACT_ORDERS)}, got {act_order!r}")
