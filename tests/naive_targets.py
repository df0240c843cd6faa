"""Targets and refitted scales in float64, from their definitions. Imports nothing of the package."""

import itertools

import numpy as np


def moment(left, right):
    """2 / tokens * sum over tokens of left right^T, one token at a time."""
    total = np.zeros((left.shape[1], right.shape[1]))
    for a, b in zip(left.astype(np.float64), right.astype(np.float64), strict=True):
        total += np.outer(a, b)
    return 2 / len(left) * total


def loss_to_original(weight, values, original, inputs, residual=None):
    """2 / tokens * sum over tokens of |W x (+ r - rh) - Q xh|^2."""
    total = 0.0
    for n in range(len(inputs)):
        wanted = weight @ original[n]
        if residual is not None:
            wanted = wanted + residual[n]
        total += float(np.sum((wanted - values @ inputs[n]) ** 2))
    return 2 / len(inputs) * total


def propagated_target(
    weight, hessian, cross, residual=None, strength=1.0, percdamp=0.0, shrinkage=0.0
):
    """W + strength * (W (C - H) + residual) (H + damping)^-1, by an explicit inverse of a shrunk H."""
    damped = (1 - shrinkage) * hessian + shrinkage * np.diag(np.diagonal(hessian))
    for j in range(len(damped)):
        dead = hessian[j, j] == 0
        damped[j, j] = 1 if dead else damped[j, j] + percdamp * np.mean(np.diagonal(hessian))
    missing = weight @ (cross - hessian)
    if residual is not None:
        missing = missing + residual
    return weight + strength * missing @ np.linalg.inv(damped)


def refitted_row(weight, codes, zeros, scales, group_of, hessian, store):
    """Scales of one row: least squares over H's root, stored, and kept where the loss falls."""
    groups = len(scales)
    basis = np.zeros((groups, len(weight)))
    for j, g in enumerate(group_of):
        basis[g, j] = float(codes[j]) - float(zeros[g])
    values, vectors = np.linalg.eigh(hessian)
    root = vectors * np.sqrt(np.maximum(values, 0))
    live = [g for g in range(groups) if basis[g].any()]
    best = np.array(scales, np.float64)
    best[live] = np.linalg.lstsq(root.T @ basis[live].T, root.T @ weight, rcond=None)[0]
    best = np.where(best > 0, best, scales)
    best = np.array([float(store(s)) for s in best])

    def loss(s):
        error = weight - s @ basis
        return error @ hessian @ error

    return best if loss(best) < loss(np.array(scales, np.float64)) else np.array(scales, float)


def best_scales_on_lattice(weight, codes, zeros, scales, group_of, hessian, factors):
    """Least loss of a row over every combination of factors on its groups' scales."""
    least = np.inf
    for combination in itertools.product(factors, repeat=len(scales)):
        s = np.asarray(scales, np.float64) * combination
        error = weight - np.array([(codes[j] - zeros[g]) * s[g] for j, g in enumerate(group_of)])
        least = min(least, error @ hessian @ error)
    return least


def least_with_integer_zero(weight, codes, hessian, zeros):
    """Least loss of a row of one group over integer zeros, each with the best of all scales."""
    best = np.inf
    for zero in zeros:
        basis = codes.astype(np.float64) - zero
        length = basis @ hessian @ basis
        scale = basis @ hessian @ weight / length if length > 0 else 0.0
        error = weight - scale * basis
        if scale > 0 and error @ hessian @ error < best:
            best = float(error @ hessian @ error)
    return best


def least_with_real_zeros(weight, codes, group_of, hessian):
    """Least loss of a row over scales and real zeros: least squares over codes and ones of each group."""
    groups = max(group_of) + 1
    basis = np.zeros((2 * groups, len(weight)))
    for j, g in enumerate(group_of):
        basis[g, j], basis[groups + g, j] = float(codes[j]), 1.0
    values, vectors = np.linalg.eigh(hessian)
    root = vectors * np.sqrt(np.maximum(values, 0))
    found = np.linalg.lstsq(root.T @ basis.T, root.T @ weight, rcond=None)[0]
    error = weight - found @ basis
    return error @ hessian @ error
