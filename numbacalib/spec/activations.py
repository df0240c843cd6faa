"""The activations of a decoder's MLP, element by element, in float32.

SiLU and the gate of SwiGLU: Shazeer (2020), arXiv 2002.05202, equation 6. GELU: Hendrycks and Gimpel
(2016), arXiv 1606.08415, section 2, exactly and by a hyperbolic tangent. Squared ReLU: So et al. (2021),
arXiv 2109.08668, section 3. The clamped SwiGLU of GPT-OSS: OpenAI (2025), arXiv 2508.10925, section 2.
"""

from __future__ import annotations

import math

import numpy as np

from numbacalib.runtime.jit import scalar
from numbacalib.spec.exponential import exp
from numbacalib.spec.normal import normal_cdf

SILU, GELU, GELU_TANH, RELU, SQUARED_RELU, SIGMOID, SOFTPLUS, IDENTITY = range(8)
"""Numbers that stand for the activations in kernels."""

TWICE_ROOT = np.float32(2 * math.sqrt(2 / math.pi))
CUBIC = np.float32(0.044715)


@scalar
def sigmoid(x):
    """``1 / (1 + exp(-x))``."""
    return np.float32(1) / (np.float32(1) + exp(-x))


@scalar
def silu(x):
    """``x / (1 + exp(-x))``."""
    return x / (np.float32(1) + exp(-x))


@scalar
def gelu(x):
    """``x / 2 * (1 + erf(x / sqrt(2)))``: x times the probability of less in a normal distribution."""
    return x * normal_cdf(x)


@scalar
def gelu_tanh(x):
    """``x / 2 * (1 + tanh(y))`` with ``y = sqrt(2 / pi) (x + 0.044715 x**3)``: ``x / (1 + exp(-2 y))``."""
    return x / (np.float32(1) + exp(-TWICE_ROOT * (x + CUBIC * x * x * x)))


@scalar
def relu(x):
    """``max(x, 0)``; NaN stays NaN."""
    return np.float32(0) if x < np.float32(0) else x


@scalar
def squared_relu(x):
    """``max(x, 0)**2``; NaN stays NaN."""
    return relu(x) * relu(x)


@scalar
def softplus(x):
    """``log(1 + exp(x))``."""
    return max(x, np.float32(0)) + np.float32(math.log1p(exp(-abs(x))))


@scalar
def at_most(x, limit):
    """``min(x, limit)``; NaN stays NaN."""
    return limit if x > limit else x


@scalar
def clamped_swiglu(gate, up, slope, limit):
    """``(u + 1) g / (1 + exp(-slope g))`` with ``g = min(gate, limit)`` and u, `up` within both limits."""
    g = at_most(gate, limit)
    u = -at_most(-at_most(up, limit), limit)
    return (u + np.float32(1)) * (g / (np.float32(1) + exp(-slope * g)))


@scalar
def activated(kind, x):
    """Activation number `kind` of x."""
    if kind == SILU:
        value = silu(x)
    elif kind == GELU:
        value = gelu(x)
    elif kind == GELU_TANH:
        value = gelu_tanh(x)
    elif kind == RELU:
        value = relu(x)
    elif kind == SQUARED_RELU:
        value = squared_relu(x)
    elif kind == SIGMOID:
        value = sigmoid(x)
    elif kind == SOFTPLUS:
        value = softplus(x)
    else:
        value = x
    return value
