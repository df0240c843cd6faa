"""Expected losses against those that GPTQ leaves, and the choice of widths against all that there are."""

import itertools

import cases
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbacalib.methods import LayerSettings, gptq, proxy_loss
from numbacalib.methods.widths import Width, chosen_widths, expected_losses


def mixed_inputs(channels, tokens=512, seed=4):
    """Hessian of inputs that go together, with channels of different sizes."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((channels, channels)) / channels**0.5 + np.eye(channels)
    inputs = rng.standard_normal((tokens, channels)) @ mixing * rng.uniform(0.2, 3, channels)
    return (2 / tokens * inputs.T @ inputs).astype(np.float32)


@pytest.mark.parametrize("order", [{}, {"act_order": "desc", "static_groups": True}])
@pytest.mark.parametrize("symmetric", [False, True])
def test_expected_losses_are_about_those_of_gptq(backend, order, symmetric):
    rows = 8 if backend.name == "cudasim" else 200
    weight = cases.random_matrix(1, (rows, 32), np.float32)
    hessian = mixed_inputs(32)
    settings = LayerSettings(symmetric=symmetric, **order)
    found = expected_losses(
        {"q": backend.array(weight)}, backend.array(hessian), [8, 16], settings
    )["q"]
    assert set(found) == set(itertools.product(range(2, 9), [8, 16]))
    for bits, size in ((4, 8), (4, 16), (6, 16)):
        options = {"bits": bits, "group_size": size, "symmetric": symmetric, **order}
        left = proxy_loss(weight, gptq(weight, hessian, **options), hessian)
        assert found[bits, size] == pytest.approx(left, rel=0.3)


@pytest.mark.parametrize("shrinkage", [0.0, 0.2, 1.0])
def test_expected_losses_are_of_the_hessian_that_gptq_factors(shrinkage):
    """Shrunk and damped: GPTQ's own report is of it, too."""
    weight, hessian = cases.random_matrix(1, (400, 32), np.float32), mixed_inputs(32)
    smoothing = {"percdamp": 0.05, "shrinkage": shrinkage}
    settings = LayerSettings(**smoothing)
    found = expected_losses({"q": weight}, hessian, [16], settings)["q"][6, 16]
    left = gptq(weight, hessian, bits=6, group_size=16, **smoothing).report.loss
    assert found == pytest.approx(left, rel=0.05)
    without = expected_losses({"q": weight}, hessian, [16], LayerSettings(percdamp=0.05))["q"]
    assert (found == without[6, 16]) == (shrinkage == 0)


def test_dead_channels_lose_nothing():
    weight, hessian = cases.random_matrix(1, (20, 16), np.float32), mixed_inputs(16)
    hessian[8:] = hessian[:, 8:] = 0
    live = expected_losses({"q": weight[:, :8]}, hessian[:8, :8], [8], LayerSettings(percdamp=0))
    dead = expected_losses({"q": weight}, hessian, [8], LayerSettings(percdamp=0))
    assert dead["q"][4, 8] == pytest.approx(live["q"][4, 8], rel=1e-4)


WIDTHS = st.lists(
    st.tuples(st.integers(1, 9), st.floats(0, 1)).map(lambda pair: Width(0, 0, *pair)),
    min_size=1,
    max_size=4,
)


@given(layers=st.lists(WIDTHS, min_size=1, max_size=4), budget=st.integers(0, 40))
def test_no_choice_of_the_same_size_loses_less(layers, budget):
    options = {str(number): widths for number, widths in enumerate(layers)}
    least = sum(min(width.size for width in widths) for widths in layers)
    if budget < least:
        with pytest.raises(ValueError, match="size: expected room for the narrowest widths"):
            chosen_widths(options, budget)
        return
    chosen = chosen_widths(options, budget)
    assert all(chosen[layer] in widths for layer, widths in options.items())
    size = sum(width.size for width in chosen.values())
    loss = sum(width.loss for width in chosen.values())
    assert size <= budget
    for others in itertools.product(*layers):
        if sum(width.size for width in others) <= size:
            assert loss <= sum(width.loss for width in others) + 1e-12
