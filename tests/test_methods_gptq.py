"""GPTQ's options: orders, static groups, damping that grows, shrinkage, what it reports."""

import itertools

import cases
import naive
import naive_methods
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbacalib.methods import RangeSearch, gptq, gptq_batch, proxy_loss, rtn, shrinkage_for
from numbacalib.methods.order import column_orders

ORDERS = [
    {"act_order": order, "static_groups": static}
    for order in ("none", "desc", "group_aware")
    for static in (False, True)
]


def layer(seed, rows=4, channels=24):
    """A weight and a Hessian whose diagonal spans two orders of magnitude, float64."""
    spread = 10 ** np.random.default_rng(seed).uniform(-1, 1, channels)
    hessian = cases.random_hessian(seed + 1, channels) * np.outer(spread, spread)
    return cases.random_matrix(seed, (rows, channels)), hessian


def store_float16(scale):
    return float(np.float16(scale))


@pytest.mark.parametrize("options", ORDERS)
@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric", "search"),
    [
        (4, 8, False, None),
        (3, 24, True, None),
        (2, 4, False, RangeSearch(norm=2)),
        (3, 12, True, RangeSearch(points=10, least=0.45, norm=2)),
    ],
)
def test_gptq_agrees_with_the_definition(backend, options, bits, group_size, symmetric, search):
    weight, hessian = layer(5)
    if backend.name == "cudasim":
        group_size //= 2
        weight, hessian = layer(5, 1, 12)
    diagonal = np.diagonal(hessian)
    importance = None if search is None else diagonal
    settings = {"bits": bits, "group_size": group_size, "symmetric": symmetric}
    quantized = backend.call(
        gptq, weight, hessian, **settings, **options, search=search, importance=importance
    )
    orders = {
        "none": None,
        "desc": naive_methods.descending(diagonal),
        "group_aware": naive_methods.group_aware(diagonal, group_size),
    }
    codes, values = naive_methods.gptq(
        weight,
        hessian,
        order=orders[options["act_order"]],
        static_groups=options["static_groups"],
        store=store_float16,
        search=search,
        importance=importance,
        **settings,
    )
    np.testing.assert_array_equal(quantized.codes, codes + symmetric * 2 ** (bits - 1))
    np.testing.assert_allclose(quantized.dequantize(), values, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("options", ORDERS)
@pytest.mark.parametrize("group_size", [8, 24])
def test_only_desc_with_groups_of_its_own_has_group_indices(options, group_size):
    weight, hessian = layer(1)
    quantized = gptq(weight, hessian, bits=4, group_size=group_size, **options)
    classic = options == {"act_order": "desc", "static_groups": False} and group_size < 24
    assert (quantized.g_idx is not None) == classic
    if classic:
        expected = np.empty(24, int)
        expected[naive_methods.descending(np.diagonal(hessian))] = np.arange(24) // 8
        np.testing.assert_array_equal(quantized.g_idx, expected)


@given(
    seed=st.integers(0, 999), within=st.permutations(range(4)), between=st.permutations(range(6))
)
def test_orders_by_activation_do_not_depend_on_how_channels_come(seed, within, between):
    weight, hessian = layer(seed)
    anywhere = np.random.default_rng(seed).permutation(24)
    in_groups = (np.array(between)[:, None] * 4 + np.array(within)).ravel()
    for options, order in (
        ({"act_order": "desc"}, anywhere),
        ({"act_order": "desc", "static_groups": True}, in_groups),
        ({"act_order": "group_aware"}, in_groups),
        ({"act_order": "group_aware", "static_groups": True}, in_groups),
    ):
        plain = gptq(weight, hessian, bits=3, group_size=4, **options)
        moved = gptq(
            weight[:, order], hessian[np.ix_(order, order)], bits=3, group_size=4, **options
        )
        np.testing.assert_array_equal(moved.dequantize(), plain.dequantize()[:, order])


@given(
    seed=st.integers(0, 999),
    bits=st.integers(2, 8),
    group_size=st.sampled_from([4, 16, 48]),
    symmetric=st.booleans(),
    options=st.sampled_from(ORDERS),
    search=st.sampled_from([None, RangeSearch(), RangeSearch(norm=2)]),
)
def test_gptq_loses_less_than_rounding_on_average(
    seed, bits, group_size, symmetric, options, search
):
    settings = {"bits": bits, "group_size": group_size, "symmetric": symmetric, "search": search}
    ratios = []
    for number in range(8):
        weight, hessian = layer(seed + number, 8, 48)
        quantized = gptq(weight, hessian, **settings, **options)
        loss = proxy_loss(weight, quantized, hessian)
        ratios.append(loss / proxy_loss(weight, rtn(weight, **settings), hessian))
    assert np.exp(np.mean(np.log(ratios))) < 1


def test_more_bits_lose_less():
    weight, hessian = layer(3, 16, 48)
    losses = [
        proxy_loss(weight, gptq(weight, hessian, bits=bits, group_size=16), hessian)
        for bits in (2, 3, 4, 5, 6, 7, 8)
    ]
    assert all(after < 0.5 * before for before, after in itertools.pairwise(losses))


def indefinite(channels=8):
    """A Hessian whose least eigenvalue is about -0.09 of its diagonal."""
    hessian = np.full((channels, channels), 1.0)
    vector = np.arange(channels) - (channels - 1) / 2
    return hessian - 0.09 * np.outer(vector, vector) / (vector @ vector)


def test_damping_grows_until_the_hessian_can_be_factored(backend):
    weight = cases.random_matrix(1, (3, 8))
    settings = {"bits": 4, "group_size": 8}
    quantized = backend.call(gptq, weight, indefinite(), **settings, percdamp=0)
    report = quantized.report
    assert report.tries == 4
    assert report.percdamp == pytest.approx(0.16)
    assert report.damping == pytest.approx(0.16 * np.diagonal(indefinite()).mean())
    again = backend.call(gptq, weight, indefinite(), **settings, percdamp=report.percdamp)
    assert again.report.tries == 1
    np.testing.assert_array_equal(again.codes, quantized.codes)


def test_damping_does_not_grow_where_it_must_not(backend):
    weight = cases.random_matrix(1, (3, 8))
    settings = {"bits": 4, "group_size": 8}
    for tries in (1, 3):
        with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
            backend.call(gptq, weight, indefinite(), **settings, percdamp=0, damping_tries=tries)
    with pytest.raises(ValueError, match="damping_tries: expected 1 to 100, got 0"):
        backend.call(gptq, weight, np.eye(8), **settings, damping_tries=0)


@pytest.mark.parametrize("options", ORDERS)
def test_dead_channels_become_zero_in_any_order(backend, options):
    weight, hessian = layer(2, 4, 12)
    for dead in (3, 7):
        hessian[dead] = hessian[:, dead] = 0
    quantized = backend.call(gptq, weight, hessian, bits=3, group_size=4, **options)
    report = quantized.report
    assert report.dead == 2
    np.testing.assert_array_equal(quantized.dequantize()[:, [3, 7]], 0)
    without = np.delete(np.arange(12), [3, 7])
    assert (quantized.dequantize()[:, without] != 0).mean() > 0.5


def test_smallest_pivot_is_that_of_the_damped_hessian(backend):
    weight, hessian = layer(4, 2, 10)
    mean = np.diagonal(hessian).mean()
    report = backend.call(gptq, weight, hessian, bits=4, group_size=10, percdamp=0.05).report
    # a pivot is the variance that the channels after it leave, 1 / inv(H[j:, j:])[0, 0] from the end
    damped = hessian + 0.05 * mean * np.eye(10)
    pivots = [1 / np.linalg.inv(damped[j:, j:])[0, 0] for j in range(10)]
    assert report.smallest_pivot == pytest.approx(min(pivots) / mean, rel=1e-6)
    rank_two = cases.random_matrix(1, (2, 10))
    report = backend.call(gptq, weight, rank_two.T @ rank_two, bits=4, group_size=10).report
    assert 0.01 <= report.smallest_pivot < 0.015
    report = backend.call(gptq, weight, np.zeros((10, 10)), bits=4, group_size=10).report
    assert report.smallest_pivot == 0
    assert report.dead == 10


def test_shrinkage_moves_the_hessian_toward_its_diagonal(backend):
    weight, hessian = layer(6, 2, 8) if backend.name == "cudasim" else layer(6)
    kept = hessian.copy()
    part = 0.75 * hessian + 0.25 * np.diag(np.diagonal(hessian))
    expected = gptq(weight, part, bits=3, group_size=8)
    quantized = backend.call(gptq, weight, hessian, bits=3, group_size=8, shrinkage=0.25)
    np.testing.assert_array_equal(quantized.codes, expected.codes)
    np.testing.assert_array_equal(hessian, kept)
    # with a diagonal Hessian there is nothing to compensate
    whole = backend.call(gptq, weight, hessian, bits=3, group_size=8, shrinkage=1)
    np.testing.assert_array_equal(whole.codes, rtn(weight, bits=3, group_size=8).codes)
    with pytest.raises(ValueError, match="shrinkage: expected 0 to 1, got 1.5"):
        backend.call(gptq, weight, hessian, bits=3, group_size=8, shrinkage=1.5)


def test_shrinkage_for_few_tokens_agrees_with_the_definition(backend):
    tokens = cases.random_matrix(1, (12, 6)) @ (cases.random_matrix(2, (6, 6)) + 1)
    tokens *= [1, 1, 5, 0.1, 0, 1]
    hessian = 2 / 12 * tokens.T @ tokens
    noise = signal = 0.0
    for i in range(6):
        for j in range(6):
            if i != j and 4 not in (i, j):
                r = hessian[i, j] / np.sqrt(hessian[i, i] * hessian[j, j])
                noise += (1 - r**2) ** 2 / 12
                signal += r**2
    assert backend.call(shrinkage_for, hessian, 12) == pytest.approx(noise / signal)
    assert backend.call(shrinkage_for, np.eye(3), 12) == 0
    assert backend.call(shrinkage_for, np.eye(3) + 1e-3, 1) == 1


def test_shrinkage_is_a_remedy_for_few_tokens():
    """On tokens that were not calibrated on, the average loss falls."""
    losses = {False: 0.0, True: 0.0}
    for seed in range(5):
        rng = np.random.default_rng(seed)
        mixing = rng.normal(size=(64, 64)) * 0.15 + np.eye(64)
        few, many = rng.normal(size=(24, 64)) @ mixing, rng.normal(size=(4096, 64)) @ mixing
        weight = rng.normal(size=(32, 64))
        hessian = 2 / 24 * few.T @ few
        for remedy in losses:
            shrinkage = shrinkage_for(hessian, 24) if remedy else 0
            quantized = gptq(weight, hessian, bits=3, group_size=16, shrinkage=shrinkage)
            losses[remedy] += proxy_loss(weight, quantized, 2 / 4096 * many.T @ many)
    assert losses[True] < 0.9 * losses[False]


def test_errors_name_the_argument():
    weight, hessian = layer(1)
    with pytest.raises(
        ValueError, match="act_order: expected none, desc or group_aware, got 'asc'"
    ):
        gptq(weight, hessian, bits=4, group_size=8, act_order="asc")


@pytest.mark.parametrize("options", [{}, {"act_order": "desc"}, {"shrinkage": 0.1}])
@pytest.mark.parametrize("name", ["weight", "hessian"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named_however_columns_go(name, value, options):
    """Arrays are checked while the factor is found, so it and the order meet such values first."""
    arrays = {"weight": np.ones((4, 64)), "hessian": np.eye(64) + 0.1}
    arrays[name][3, 3] = value
    with pytest.raises(
        ValueError, match=rf"{name}: expected finite values, got {value} at \[.*3\]"
    ):
        gptq(**arrays, bits=4, group_size=32, **options)


@pytest.mark.parametrize("wide", ["weight", "hessian"])
def test_one_argument_of_float64_makes_everything_so(backend, wide):
    """Wider than a panel, so that products of panels are among everything."""
    weight, hessian = layer(1, 4, 320)
    group_size = 8
    if backend.name == "cudasim":
        group_size = 4
        weight, hessian = layer(1, 1, 8)
    narrow = (weight if wide == "hessian" else hessian).astype(np.float32)
    weight, hessian = (narrow, hessian) if wide == "hessian" else (weight, narrow)
    for options in ORDERS:
        settings = {"bits": 3, "group_size": group_size}
        quantized = backend.call(gptq, weight, hessian, **settings, **options)
        _, values = naive_methods.gptq(
            weight,
            hessian,
            3,
            group_size,
            False,
            order={
                "none": None,
                "desc": naive_methods.descending(np.diagonal(hessian)),
                "group_aware": naive_methods.group_aware(np.diagonal(hessian), group_size),
            }[options["act_order"]],
            static_groups=options["static_groups"],
            store=store_float16,
        )
        loss = naive.proxy_loss(weight, quantized.dequantize(), hessian)
        assert loss == pytest.approx(naive.proxy_loss(weight, values, hessian), rel=0.05)


def experts(backend, count=5):
    """Equal layers with Hessians of their own, one with a dead channel, and a group size."""
    rows, channels = (3, 8) if backend.name == "cudasim" else (37, 48)
    layers = [layer(seed, rows, channels) for seed in range(count)]
    weights, hessians = (np.stack(arrays) for arrays in zip(*layers, strict=True))
    hessians[1, 3] = hessians[1, :, 3] = 0
    return weights, hessians, channels // 4


BATCHES = [
    {},
    {"act_order": "desc"},
    {"act_order": "desc", "static_groups": True, "symmetric": True},
    {"act_order": "group_aware", "search": RangeSearch(points=5), "importance": "diagonals"},
    {"search": RangeSearch(points=5, norm=2), "importance": "elements", "shrinkage": 0.1},
]


@pytest.mark.parametrize("options", BATCHES)
def test_a_batch_gives_what_each_layer_gives_alone(backend, options):
    weights, hessians, group_size = experts(backend)
    settings = {**options, "bits": 3, "group_size": group_size}
    importance = {
        "diagonals": np.diagonal(hessians, axis1=1, axis2=2),
        "elements": weights**2,
    }.get(settings.pop("importance", None))
    found = backend.call(gptq_batch, weights, hessians, **settings, importance=importance)
    assert len(found) == len(weights)
    for e, quantized in enumerate(found):
        own = None if importance is None else importance[e]
        alone = gptq(weights[e], hessians[e], **settings, importance=own)
        np.testing.assert_array_equal(quantized.codes, alone.codes)
        np.testing.assert_array_equal(quantized.zeros, alone.zeros)
        # float16: one unit of the last place, where a scale lies half-way
        np.testing.assert_allclose(quantized.scales, alone.scales, rtol=2**-10)
        np.testing.assert_array_equal(quantized.g_idx, alone.g_idx)
        np.testing.assert_allclose(quantized.report, alone.report, rtol=1e-8)


def test_only_the_layers_of_a_batch_that_need_it_get_more_damping(backend):
    hessians = np.stack([np.eye(8), indefinite(), 2 * np.eye(8), indefinite()])
    weights = np.stack([cases.random_matrix(seed, (3, 8)) for seed in range(4)])
    settings = {"bits": 4, "group_size": 8, "percdamp": 0}
    found = backend.call(gptq_batch, weights, hessians, **settings)
    assert [quantized.report.tries for quantized in found] == [1, 4, 1, 4]
    percdamps = [quantized.report.percdamp for quantized in found]
    assert percdamps == pytest.approx([0, 0.16, 0, 0.16])
    with pytest.raises(np.linalg.LinAlgError, match=r"hessians\[1\]: not positive definite"):
        backend.call(gptq_batch, weights, hessians, **settings, damping_tries=2)


def test_a_batch_of_any_strides(backend):
    weights, hessians, group_size = experts(backend)
    settings = {"bits": 4, "group_size": group_size}
    expected = gptq_batch(weights[::2], hessians[::2], **settings)
    found = backend.call(gptq_batch, weights[::2], hessians[::2], **settings)
    for quantized, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(quantized.codes, other.codes)


def test_each_hessian_of_a_batch_is_shrunk_by_its_own_share(backend):
    weights, hessians, group_size = experts(backend)
    settings = {"bits": 4, "group_size": group_size}
    shares = [0.3 * e / len(weights) for e in range(len(weights))]
    found = backend.call(gptq_batch, weights, hessians, **settings, shrinkage=shares)
    for e, (quantized, share) in enumerate(zip(found, shares, strict=True)):
        alone = backend.call(gptq, weights[e], hessians[e], **settings, shrinkage=share)
        assert quantized == alone
        expected = pytest.approx(alone.report.effective_rank, rel=1e-5)
        assert quantized.report.effective_rank == expected
    assert len({quantized.report.effective_rank for quantized in found}) > 1


def test_errors_of_a_batch_name_the_argument():
    weights, hessians = np.ones((2, 3, 8)), np.stack([np.eye(8)] * 2)
    settings = {"bits": 4, "group_size": 8}
    with pytest.raises(ValueError, match=r"weights: expected shape \[E, M, K\], got \[3, 8\]"):
        gptq_batch(weights[0], hessians, **settings)
    with pytest.raises(ValueError, match=r"hessians: expected shape \[2, 8, 8\], got \[1, 8, 8\]"):
        gptq_batch(weights, hessians[:1], **settings)
    with pytest.raises(ValueError, match=r"importance: expected shape \[2, 3, 8\], got \[3, 8\]"):
        gptq_batch(weights, hessians, **settings, search=RangeSearch(), importance=weights[0])
    with pytest.raises(ValueError, match=r"shrinkage: expected a number or 2 of them, got 1"):
        gptq_batch(weights, hessians, **settings, shrinkage=[0.1])
    with pytest.raises(ValueError, match=r"shrinkage: expected 0 to 1, got 1.5"):
        gptq_batch(weights, hessians, **settings, shrinkage=[0.1, 1.5])
    hessians[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match=r"hessians: expected finite .* got nan at \[1, 2, 3\]"):
        gptq_batch(weights, hessians, **settings)


def test_equal_channels_keep_their_order():
    diagonals = np.random.default_rng(1).random((2, 500))
    diagonals[1, ::7] = diagonals[1, 0]
    hessians = np.stack([np.diag(diagonal) for diagonal in diagonals])
    expected = [sorted(range(500), key=lambda j: -diagonal[j]) for diagonal in diagonals]
    np.testing.assert_array_equal(column_orders(hessians, "desc", 100).order, expected)
