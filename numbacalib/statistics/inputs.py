"""Statistics of a layer's inputs: streaming, mergeable, savable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from numbacalib.ops.gptq_hessian_update import gptq_hessian_update
from numbacalib.ops.magnitudes import channel_magnitudes
from numbacalib.ops.matrix import (
    blended,
    cast,
    diagonal,
    from_host,
    larger,
    row_range,
    scaled,
    to_host,
    weighted_sum,
    zeros,
)
from numbacalib.ops.products import add_moment
from numbacalib.runtime import checks
from numbacalib.runtime.array import Array, ArrayT
from numbacalib.runtime.backend import arrays_of_one_device
from numbacalib.runtime.finite import square_limit, start_finite_check

ARRAYS = ("hessian", "mean_abs", "max_abs")
OPTIONAL = ("cross", "drift", "residual")
"""Moments that compare with the original model."""
DRIFT_TOKENS = 1024
"""Tokens of an update that enter `InputStatistics.drift`: only one number of a report needs it."""


class InputStatistics:
    """Moments and magnitudes of a linear layer's inputs, each token weighing the same.

    They are kept on the device of the first inputs: NumPy arrays, or Numba device arrays.

    Parameters
    ----------
    channels : int
        K, the width of the inputs.

    Attributes
    ----------
    tokens : int
        Tokens seen.
    hessian : float32 array [K, K]
        ``2 / tokens * X^T X`` over every token seen: the GPTQ Hessian.
    mean_abs, max_abs : float32 arrays [K]
        ``mean_n |x[n, j]|`` and ``max_n |x[n, j]|``: the activation magnitudes of AWQ.
    cross : float32 array [K, K] or None
        ``2 / tokens * Y^T X`` with the original model's inputs Y of the same tokens, if they were given:
        C of `numbacalib.methods.propagated_target`.
    drift : float32 array [K, K] or None
        ``2 / tokens * (Y - X)^T (Y - X)``, from which the loss to the original outputs is computed. Of a
        longer update, the first `DRIFT_TOKENS` stand for all.
    residual : float32 array [M, K] or None
        ``2 / tokens * R^T X``, where R is the original less the present residual stream, to which the
        layer adds its M outputs.
    """

    def __init__(self, channels: int) -> None:
        channels = checks.integer("channels", channels, 1, 1 << 31)
        self.tokens = 0
        self.hessian: Any = np.zeros((channels, channels), np.float32)
        self.mean_abs: Any = np.zeros(channels, np.float32)
        self.max_abs: Any = np.zeros(channels, np.float32)
        self.cross: Any = None
        self.drift: Any = None
        self.residual: Any = None

    @property
    def mean_square(self) -> Array:
        """``mean_n x[n, j] ** 2``, [K]: llama.cpp's importance matrix."""
        return scaled(diagonal(self.hessian), 0.5)

    def update(
        self, inputs: ArrayT, original: ArrayT | None = None, residual: ArrayT | None = None
    ) -> None:
        """Add tokens: inputs [N, K] of any length, or of more axes with the channels last.

        Any of the four dtypes. Sums are float32, which holds sums of squares of magnitudes below
        ``1.3e19 / sqrt(N)``.

        Parameters
        ----------
        inputs : array [N, K]
        original : array [N, K], optional
            The original model's inputs for the same tokens: with all tokens or with none.
        residual : array [N, M], optional
            The original less the present residual stream, for a layer that adds its M outputs to it: with
            `original` only, and with all tokens or with none.

        Raises
        ------
        ValueError, TypeError
            If a shape differs, a value is not finite or too large for that (the first index is named), or
            the arrays are on another device than those before; what was collected stays as it was.
        """
        self._update(inputs, original, residual, wait=True)

    def start_update(
        self, inputs: ArrayT, original: ArrayT | None = None, residual: ArrayT | None = None
    ) -> Callable[[], None]:
        """Update without waiting for a GPU's check of values: return a function that waits, and raises.

        The statistics are valid once it was called and did not raise. Call it before the next update.
        """
        return self._update(inputs, original, residual, wait=False)

    def _update(self, inputs: Any, original: Any, residual: Any, *, wait: bool) -> Any:
        arrays = {"inputs": inputs, "original": original, "residual": residual}
        with arrays_of_one_device(**arrays) as (inputs, original, residual):
            channels = len(self.hessian)
            rows, check = _tokens("inputs", inputs, channels)
            unfinished = [check]  # all checks start before the first wait for the device
            if original is not None:
                original, check = _tokens("original", original, channels, rows)
                unfinished.append(check)
            if residual is not None:
                *_, width = residual.shape
                residual, check = _tokens("residual", residual, width, rows)
                unfinished.append(check)
            self._require_companions(original, residual)

            def require() -> None:
                for check in unfinished:
                    check()

            if wait:
                require()
            self._add(rows, original, residual)
        return require

    def _add(self, rows: Any, original: Any, residual: Any) -> None:
        """Add checked tokens."""
        channels = len(self.hessian)
        if self.tokens == 0:
            self.hessian = zeros((channels, channels), like=rows)
            self.mean_abs, self.max_abs = zeros((channels,), rows), zeros((channels,), rows)
            if original is not None:
                self.cross, self.drift = (zeros((channels, channels), rows) for _ in range(2))
            if residual is not None:
                self.residual = zeros((residual.shape[1], channels), rows)
        tokens = self.tokens + len(rows)
        share = self.tokens / tokens
        gptq_hessian_update(self.hessian, rows, alpha=2 / tokens, beta=share, out=self.hessian)
        mean_abs, max_abs = channel_magnitudes(rows)
        self.mean_abs = blended(self.mean_abs, mean_abs, share)
        self.max_abs = larger(self.max_abs, max_abs)
        if original is not None:
            add_moment(self.cross, original, rows, 2 / tokens, share)
            self._add_drift(rows, original, tokens)
        if residual is not None:
            add_moment(self.residual, residual, rows, 2 / tokens, share)
        self.tokens = tokens

    def _add_drift(self, rows: Any, original: Any, tokens: int) -> None:
        """Add to `drift`; `tokens` is the count after the update."""
        shown = [row_range(array, 0, DRIFT_TOKENS) for array in (original, rows)]
        drift = weighted_sum(shown[0], shown[1], 1.0, -1.0, dtype=rows.dtype)
        alpha = 2 / tokens * len(rows) / len(drift)
        beta = self.tokens / tokens
        gptq_hessian_update(self.drift, drift, alpha=alpha, beta=beta, out=self.drift)

    def _require_companions(self, original: Any, residual: Any) -> None:
        """Check that tokens come with the same optional arrays as those before."""
        if residual is not None and original is None:
            raise ValueError("residual: expected None without original, got an array")
        if self.tokens == 0:
            return
        for name, given, kept in (
            ("original", original, self.cross),
            ("residual", residual, self.residual),
        ):
            if (given is None) != (kept is None):
                before = (
                    "an array, as with the tokens before" if given is None else "None, as before"
                )
                raise ValueError(f"{name}: expected {before}")
        if residual is not None and residual.shape[1] != len(self.residual):
            width = len(self.residual)
            raise ValueError(f"residual: expected {width} columns, got {residual.shape[1]}")

    def merge(self, other: InputStatistics) -> InputStatistics:
        """Return the statistics of both sets of tokens together.

        If only one of them has moments with the original model, these stand for all tokens: `residual`,
        `drift`, and `cross` less the Hessian.
        """
        if other.hessian.shape != self.hessian.shape:
            raise ValueError(
                f"other: expected {len(self.hessian)} channels, got {len(other.hessian)}"
            )
        merged = InputStatistics(len(self.hessian))
        merged.tokens = self.tokens + other.tokens
        share = self.tokens / max(merged.tokens, 1)
        # statistics that have seen nothing may be on another device
        left, right = (self if self.tokens else other), (other if other.tokens else self)
        both = [name for name in left.companions if name in right.companions]
        for name in ("hessian", "mean_abs", *both):
            setattr(merged, name, blended(getattr(left, name), getattr(right, name), share))
        merged.max_abs = larger(left.max_abs, right.max_abs)
        for own in (left, right):
            for name in own.companions:
                if name not in both:
                    setattr(merged, name, getattr(own, name))
            if own.cross is not None and "cross" not in both:
                more = weighted_sum(merged.hessian, own.hessian, 1.0, -1.0)
                merged.cross = weighted_sum(own.cross, more, 1.0, 1.0)
        return merged

    @property
    def companions(self) -> list[str]:
        """Names of the moments with the original model that were collected."""
        return [name for name in OPTIONAL if getattr(self, name) is not None]

    def moved(self, like: Array) -> InputStatistics:
        """Return the same statistics, which are NumPy arrays, on the device of `like`."""
        result = InputStatistics(len(self.hessian))
        result.tokens = self.tokens
        for name in (*ARRAYS, *self.companions):
            setattr(result, name, from_host(getattr(self, name), like))
        return result

    def divided(self, scales: Array) -> InputStatistics:
        """Return the statistics of the same inputs divided by channel scales [K], all positive."""
        factors = from_host(1 / to_host(scales), like=self.hessian)
        result = InputStatistics(len(self.hessian))
        result.tokens = self.tokens
        result.mean_abs = scaled(self.mean_abs, factors)
        result.max_abs = scaled(self.max_abs, factors)
        for name in ("hessian", *self.companions):
            rows = None if name == "residual" else factors  # its rows are outputs
            setattr(result, name, scaled(getattr(self, name), factors, rows))
        return result


def _tokens(
    name: str, array: Any, channels: int, like: Any = None
) -> tuple[Any, Callable[[], None]]:
    """Check vectors [..., K] and return them as a matrix of at most float32, or of the dtype of `like`.

    Also returns a function that waits for the check of their values.
    """
    rows = checks.tokens(name, array, ("N", channels))
    if like is not None and len(rows) != len(like):
        raise ValueError(
            f"{name}: expected shape [{len(like)}, {channels}], got {list(rows.shape)}"
        )
    check = start_finite_check({name: array}, square_limit(len(rows)))
    if like is not None:
        return cast(rows, like.dtype), check
    return (cast(rows, np.float32) if rows.dtype == np.float64 else rows), check
