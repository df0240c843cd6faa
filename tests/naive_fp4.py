"""FP4 formats as float64 loops, from their definitions. Imports nothing of the package."""

import numpy as np

POINTS = [
    0,
    0.5,
    1,
    1.5,
    2,
    3,
    4,
    6,
]  # of E2M1: sign, 2 bits of exponent with bias 1, 1 of mantissa
GROUPS = {"mxfp4": 32, "nvfp4": 16}


def point(code):
    """Number that a code of 4 bits stands for."""
    return -POINTS[code - 8] if code >= 8 else POINTS[code]


def e4m3(code):
    """Number that a code of E4M3 without its sign stands for: bias 7, no infinities."""
    exponent, mantissa = code // 8, code % 8
    return mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)


def code_of(number):
    """Nearest code of E2M1, ties to the even one; zeros have no sign."""
    size = min(abs(number), 6.0)
    best = min(range(8), key=lambda code: (abs(POINTS[code] - size), code % 2))
    return best + 8 if number < 0 and best else best


def scale_codes(form):
    """Numbers that a group's scale may be, by code."""
    if form == "mxfp4":
        return [2.0 ** (code - 127) for code in range(255)]
    return [e4m3(code) for code in range(127)]


def first_code(form, largest):
    """Code of the scale that spans a group: for MXFP4 nothing is past 7, NVFP4's is the nearest to 6."""
    values = scale_codes(form)
    if largest == 0:
        return values.index(1.0)
    if form == "mxfp4":
        return next((code for code, value in enumerate(values) if largest < 7 * value), 254)
    codes = range(1, 127)
    return min(codes, key=lambda code: (abs(values[code] - largest / 6), code % 2))


def global_scale(form, weight):
    """What divides NVFP4's scales, float32: the largest of them goes to the largest weight."""
    if form == "mxfp4":
        return 1.0
    return float(np.float32(448 * 6) / np.float32(np.abs(weight).max()))


def loss(group, scale, block):
    """Sum d H d^T of a group on a scale."""
    codes = [code_of(value / scale) for value in group]
    d = np.array([point(code) * scale - value for code, value in zip(codes, group, strict=True)])
    return float(d @ block @ d)


def gptq(weight, hessian, scales, group_size, order=None):
    """Codes [M, K] column by column in an order, on scales [M, G] that are given; no damping."""
    w = np.array(weight, np.float64)
    order = np.arange(w.shape[1]) if order is None else np.asarray(order)
    h = np.asarray(hessian, np.float64)[np.ix_(order, order)]
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    codes = np.empty(w.shape, np.int64)
    for i in range(len(w)):
        for a, j in enumerate(order):
            scale = float(scales[i, j // group_size])
            codes[i, j] = code_of(w[i, j] / scale)
            error = (w[i, j] - point(codes[i, j]) * scale) / u[a, a]
            w[i, order[a + 1 :]] -= error * u[a, a + 1 :]
    return codes
