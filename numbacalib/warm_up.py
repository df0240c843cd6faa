"""Compilation of kernels ahead of time: for container images, and before many processes start."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

import numbacalib
from numbacalib import methods
from numbacalib.formats.bit_packing import pack_bits, unpack_bits
from numbacalib.models.loss_sums import LossSums
from numbacalib.ops import divergence, sampling
from numbacalib.ops.activation import activate
from numbacalib.ops.attention import attention
from numbacalib.ops.causal_convolution import causal_convolution
from numbacalib.ops.delta_rule import delta_rule
from numbacalib.ops.layer_norm import layer_norm
from numbacalib.ops.linear import linear
from numbacalib.ops.rms_norm import rms_norm
from numbacalib.ops.rotary import rotate
from numbacalib.ops.router import route
from numbacalib.ops.token_loss import cap
from numbacalib.spec.router import Routing
from numbacalib.statistics import InputStatistics

DTYPES = ("float32", "float16", "bfloat16")
"""Dtypes that models are stored in; bfloat16 only if ml_dtypes is installed."""

METHODS = (
    ("rtn", "full"),
    ("rtn", "mse"),
    ("rtn", "clip"),
    ("gptq", "full"),
    ("gptq", "weighted"),
    ("kmeans", "full"),
)
"""Layer methods, with the ranges that have their own kernels."""

TOKENS, ROWS, CHANNELS, GROUP = 96, 48, 256, 32
"""Sizes of the arrays: CHANNELS exceeds the panel of a factorization, so that every kernel is called."""


def warm_up(dtypes: Sequence[str] | None = None) -> None:
    """Call every operation and method on small arrays, so that the CPU kernels are compiled and cached.

    Cached kernels are not compiled again. Each call is reported on standard error. The arrays are
    C-contiguous: kernels for other strides are compiled on first use.

    Parameters
    ----------
    dtypes : sequence of str, optional
        Of inputs and weights: float16, bfloat16, float32 or float64; by default `DTYPES`.

    Raises
    ------
    ModuleNotFoundError
        If `dtypes` has bfloat16 and ml_dtypes is not installed.
    """
    if dtypes is None:
        known = importlib.util.find_spec("ml_dtypes") is not None
        dtypes = [name for name in DTYPES if known or name != "bfloat16"]
    if "bfloat16" in dtypes:
        import ml_dtypes  # noqa: F401  (gives NumPy the name)
    calls = [(f"{name}, {dtype}", call) for dtype in dtypes for name, call in _calls(dtype)]
    for done, (name, call) in enumerate(calls, 1):
        begin = time.perf_counter()
        call()
        seconds = time.perf_counter() - begin
        print(f"[{done}/{len(calls)}] {name}: {seconds:.1f} s", file=sys.stderr, flush=True)


def _calls(dtype: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield names and calls for inputs and weights of one dtype."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((TOKENS, CHANNELS)).astype(dtype)
    weight = rng.standard_normal((ROWS, CHANNELS)).astype(dtype)
    hessian = np.eye(CHANNELS, dtype=np.float64 if dtype == "float64" else np.float32)
    statistics = InputStatistics(CHANNELS)
    yield "statistics of inputs", lambda: statistics.update(inputs)
    yield "awq_channel_scores", lambda: numbacalib.awq_channel_scores(inputs, weight)
    yield "fisher_information", lambda: numbacalib.fisher_information(inputs)
    yield "gptq_hessian_update", lambda: numbacalib.gptq_hessian_update(hessian, inputs)
    yield "gptq_inverse_hessian", lambda: numbacalib.gptq_inverse_hessian(hessian)
    yield (
        "gptq_quantize_column",
        lambda: numbacalib.gptq_quantize_column(weight, hessian, 4, GROUP, False),
    )
    yield (
        "propagated_target",
        lambda: methods.propagated_target(weight, hessian, np.zeros_like(hessian)),
    )
    for method, ranges in METHODS:
        settings = methods.LayerSettings(
            method=method, group_size=GROUP, ranges=ranges, scale_dtype=dtype
        )
        quantize = partial(methods.quantize_layer, "layer", weight, statistics, settings)
        yield f"{method}, ranges {ranges}", quantize
        if method != "kmeans" and ranges == "full":
            refitted = replace(settings, refit=True, passes=1)
            for grid, own in (("scales", replace(refitted, symmetric=True)), ("grids", refitted)):
                call = partial(methods.quantize_layer, "layer", weight, statistics, own)
                yield f"{method}, refitted {grid} and coordinate descent", call
    yield "packing", _pack
    yield "a decoder block", _decode


def _pack() -> None:
    codes = np.zeros((ROWS, CHANNELS), np.uint8)
    unpack_bits(pack_bits(codes, 4), 4, CHANNELS)


def _decode() -> None:
    """Run a model's operations, which the CPU computes in float32 whatever the dtype of the weights."""
    x, weight = np.ones((TOKENS, CHANNELS), np.float32), np.ones((CHANNELS, CHANNELS), np.float32)
    heads = linear(rms_norm(x, x[0], 1e-6), weight).reshape(1, TOKENS, 1, CHANNELS)
    angles = np.zeros((TOKENS, CHANNELS // 2), np.float32)
    rotate(heads, angles, angles)
    layer_norm(x, x[0], None, 1e-6)
    activate(activate(attention(heads, heads, heads).reshape(TOKENS, CHANNELS), "silu", x), "relu")
    activate(x.copy(), "sigmoid", x)
    causal_convolution(x[None], x[:, :4].copy())
    scores = x[:, :1].reshape(1, TOKENS, 1).copy()
    delta_rule(heads, heads, heads, scores, scores, slopes=x[0, :1].copy(), biases=x[0, :1].copy())
    route(x, Routing(experts=2))
    sums = LossSums(np.zeros((1, TOKENS), np.int64), TOKENS, x)
    sums.add(0, 0, x)
    sums.losses()
    state = divergence.new_state(TOKENS, x)
    divergence.add_scores(x, x, state)
    divergence.divergences(state)
    drawn = sampling.new_state(TOKENS, x)
    sampling.add_scores(x, 0, 0, 0, drawn)
    cap(x, 30.0)
