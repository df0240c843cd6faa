"""The order in which GPTQ visits a layer's input channels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ACT_ORDERS = ("none", "desc", "group_aware")


def column_order(diagonal: NDArray, act_order: str, group_size: int) -> NDArray[np.int64] | None:
    """Return the channels in the order in which they are to be visited, [K]; None is as they come.

    Channels that are quantized early have more others left to compensate them, so the ones with the
    largest inputs, by the Hessian's diagonal [K], go first.

    - ``"none"``: as they come.
    - ``"desc"``: falling diagonal (the `desc_act` of the code that came with Frantar et al., 2022).
    - ``"group_aware"``: groups by their largest entry, and channels within each group, both falling;
      each group stays a run (Gafni et al., "Dual Precision Quantization for Efficient and Accurate
      Deep Neural Networks Inference", 2025).

    Equal entries keep their order.
    """
    if act_order == "none":
        return None
    if act_order == "desc":
        return np.argsort(-diagonal, kind="stable")
    if act_order == "group_aware":
        groups = diagonal.reshape(-1, group_size)
        within = np.argsort(-groups, axis=1, kind="stable")
        between = np.argsort(-groups.max(axis=1), kind="stable")
        return (within + group_size * np.arange(len(groups))[:, None])[between].ravel()
    raise ValueError(f"act_order: expected {', '.join(ACT_ORDERS)}, got {act_order!r}")
