"""Every public function that takes CUDA arrays, called on arrays that `ARRAYS` makes."""

from __future__ import annotations

import cases
import numpy as np

import numbacalib
from numbacalib.methods import (
    ExpertInputs,
    LayerSettings,
    RangeSearch,
    awq_clip,
    awq_scales,
    clipped_share,
    descend_codes,
    fp4_scales,
    gptq,
    gptq_batch,
    gptq_shared,
    output_loss,
    propagated_target,
    proxy_loss,
    quantize_experts,
    quantize_layer,
    quantize_layers,
    refit_scales,
    rtn,
    shrinkage_for,
    solve,
)
from numbacalib.statistics import GradientStatistics, InputStatistics

M, K, N = 96, 256, 512
GRID = {"bits": 4, "group_size": 64}


def hessian():
    return cases.random_hessian(1, K).astype(np.float32)


ARRAYS = {
    "weight": lambda: cases.random_matrix(2, (M, K), np.float32),
    "hessian": hessian,
    "inputs": lambda: cases.random_matrix(3, (N, K), np.float32),
    "original": lambda: cases.random_matrix(6, (N, K), np.float32),
    "outputs": lambda: cases.random_matrix(7, (N, M), np.float32),
    "vector": lambda: np.abs(cases.random_matrix(4, (1, K), np.float32))[0],
    "weights": lambda: np.stack([cases.random_matrix(5, (M, K), np.float32)] * 2),
    "hessians": lambda: np.stack([hessian()] * 2),
    "other_hessian": lambda: cases.random_hessian(8, K).astype(np.float32),
    "moment": lambda: cases.random_matrix(9, (M, K), np.float32),
}


def input_statistics(inputs):
    statistics = InputStatistics(K)
    statistics.update(inputs)
    statistics.update(inputs)
    return statistics


def gradient_statistics(gradients):
    statistics = GradientStatistics((K,))
    statistics.update(gradients)
    return statistics.fisher_sum


def measures(weight, hessian, vector):
    quantized = rtn(weight, **GRID)
    return proxy_loss(weight, quantized, hessian, vector), clipped_share(weight, quantized)


def of_statistics(inputs, vector):
    statistics = input_statistics(inputs).merge(input_statistics(inputs)).divided(vector)
    return statistics.hessian, statistics.mean_abs, statistics.max_abs, statistics.mean_square


def of_two_streams(inputs, original, outputs):
    statistics = InputStatistics(K)
    for _ in range(2):
        statistics.update(inputs, original, outputs)
    return statistics


SETTINGS = LayerSettings(bits=4, group_size=64)
PROPAGATED = LayerSettings(
    bits=4, group_size=64, target="propagated", ranges="weighted", refit=True
)


def two_layers(weight, inputs):
    found = quantize_layers({"q": weight, "k": weight}, input_statistics(inputs), SETTINGS)
    return [quantized for quantized, _ in found]


def in_turn(weight, inputs):
    given = {"q": weight, "k": weight}, {name: input_statistics(inputs) for name in "qk"}
    return [quantized for quantized, _ in solve(*given, SETTINGS)]


def experts(weight, inputs):
    seen = input_statistics(inputs)
    few = ExpertInputs(InputStatistics(K), lambda: (seen, seen), lambda: seen)
    given = [ExpertInputs(seen, few.halves, few.pooled), few]
    return [found for found, _ in quantize_experts({"1": weight, "2": weight}, given, SETTINGS)]


def to_the_original(weight, inputs, original, outputs):
    seen = of_two_streams(inputs, original, outputs)
    quantized, report = quantize_layer("o_proj", weight, seen, PROPAGATED)
    return quantized, report.loss, output_loss(weight, quantized, seen)


ON_THE_HOST = {"codebook"}
"""Functions that take no CUDA arrays."""
STORED = {"load_fisher", "load_statistics", "load_weights", "save_fisher", "save_statistics"}
STORED |= {"stored_channels"}
"""Functions of files: what they load is NumPy's, and what they save is read as results are."""


FUNCTIONS = {
    "awq_channel_scores": (numbacalib.awq_channel_scores, "inputs", "weight"),
    "fisher_information": (numbacalib.fisher_information, "inputs"),
    "gptq_hessian_update": (numbacalib.gptq_hessian_update, "hessian", "inputs"),
    "gptq_hessian_update, in place": (
        lambda h, x: numbacalib.gptq_hessian_update(h, x, out=h),
        "hessian",
        "inputs",
    ),
    "gptq_inverse_hessian": (numbacalib.gptq_inverse_hessian, "hessian"),
    "gptq_quantize_column": (
        lambda w, h: numbacalib.gptq_quantize_column(w, h, 4, 64, False),
        "weight",
        "hessian",
    ),
    "rtn": (
        lambda w, v: rtn(w, **GRID, search=RangeSearch(points=5), importance=v),
        "weight",
        "vector",
    ),
    "gptq": (lambda w, h: gptq(w, h, **GRID), "weight", "hessian"),
    "gptq, in order": (
        lambda w, h: gptq(w, h, **GRID, act_order="desc", static_groups=True, shrinkage=0.1),
        "weight",
        "hessian",
    ),
    "gptq_batch": (
        lambda w, h: gptq_batch(w, h, **GRID),
        "weights",
        "hessians",
    ),
    "awq_scales": (
        lambda w, h, v: awq_scales([w], h, v, **GRID, points=3)[::2],
        "weight",
        "hessian",
        "vector",
    ),
    "awq_clip": (lambda w, h: awq_clip(w, h, **GRID, points=4), "weight", "hessian"),
    "proxy_loss, clipped_share": (measures, "weight", "hessian", "vector"),
    "shrinkage_for": (lambda h: shrinkage_for(h, 99), "hessian"),
    "dequantize": (lambda w: rtn(w, **GRID).dequantize("float16"), "weight"),
    "gptq_shared": (
        lambda w, h: list(gptq_shared({"q": w, "k": w}, h, **GRID).values()),
        "weight",
        "hessian",
    ),
    "propagated_target": (
        lambda w, h, c, r: propagated_target(w, h, c, r, strength=0.5),
        "weight",
        "hessian",
        "other_hessian",
        "moment",
    ),
    "descend_codes": (lambda w, h: descend_codes(w, rtn(w, **GRID), h), "weight", "hessian"),
    "refit_scales": (lambda w, h: refit_scales(w, rtn(w, **GRID), h), "weight", "hessian"),
    "fp4_scales": (
        lambda w, h: fp4_scales(w, "nvfp4", hessian=h).scales,
        "weight",
        "hessian",
    ),
    "quantize_layer, output_loss": (
        to_the_original,
        "weight",
        "inputs",
        "original",
        "outputs",
    ),
    "quantize_layers": (two_layers, "weight", "inputs"),
    "solve": (in_turn, "weight", "inputs"),
    "quantize_each, quantize_experts": (experts, "weight", "inputs"),
    "InputStatistics": (of_statistics, "inputs", "vector"),
    "GradientStatistics": (gradient_statistics, "inputs"),
}
