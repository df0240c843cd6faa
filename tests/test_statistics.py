import cases
import ml_dtypes
import naive_targets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numbacalib.statistics.inputs as inputs_module
from numbacalib.statistics import InputStatistics, load_statistics, load_weights, save_statistics


def collected(inputs, cuts=()):
    statistics = InputStatistics(inputs.shape[1])
    for block in np.split(inputs, cuts):
        statistics.update(block)
    return statistics


def expected_hessian(inputs):
    x = inputs.astype(np.float64)
    return 2 / len(x) * x.T @ x


@given(
    dtype=st.sampled_from(cases.DTYPES),
    cuts=st.sets(st.integers(1, 29), max_size=4),
    seed=st.integers(0, 999),
)
def test_every_token_weighs_the_same_however_the_stream_is_cut(dtype, cuts, seed):
    inputs = cases.random_matrix(seed, (30, 5), dtype)
    statistics = collected(inputs, sorted(cuts))
    assert statistics.tokens == 30
    np.testing.assert_allclose(statistics.hessian, expected_hessian(inputs), atol=1e-4)
    x = np.abs(inputs.astype(np.float64))
    np.testing.assert_allclose(statistics.mean_square, (x**2).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(statistics.mean_abs, x.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(statistics.max_abs, x.max(axis=0), rtol=1e-7)


def test_merge_is_the_statistics_of_both():
    inputs = cases.random_matrix(1, (30, 5), np.float32)
    merged = collected(inputs[:7]).merge(collected(inputs[7:]))
    assert merged.tokens == 30
    np.testing.assert_allclose(merged.hessian, expected_hessian(inputs), atol=1e-5)
    x = np.abs(inputs.astype(np.float64))
    np.testing.assert_allclose(merged.mean_abs, x.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(merged.max_abs, x.max(axis=0), rtol=1e-7)
    empty = InputStatistics(5)
    np.testing.assert_array_equal(empty.merge(merged).hessian, merged.hessian)
    assert empty.merge(empty).tokens == 0


def test_divided_is_the_statistics_of_divided_inputs():
    inputs = cases.random_matrix(1, (30, 5), np.float32)
    scales = np.array([0.5, 1, 3, 0.1, 7])
    divided, expected = collected(inputs).divided(scales), collected(inputs / scales)
    assert divided.tokens == 30
    for kind in ("hessian", "mean_abs", "max_abs"):
        np.testing.assert_allclose(getattr(divided, kind), getattr(expected, kind), rtol=1e-5)


def test_sequences_are_tokens():
    inputs = cases.random_matrix(1, (12, 5), np.float32)
    statistics = InputStatistics(5)
    statistics.update(inputs.reshape(3, 4, 5))
    assert statistics.tokens == 12
    np.testing.assert_allclose(statistics.hessian, expected_hessian(inputs), atol=1e-5)


def test_save_and_load(tmp_path):
    shared = collected(cases.random_matrix(1, (9, 5), np.float32))
    layers = {
        "model.layers.0.q_proj": shared,
        "down": collected(cases.random_matrix(2, (4, 3), np.float32)),
        "model.layers.0.k_proj": shared,
    }
    file = tmp_path / "statistics.safetensors"
    save_statistics(file, layers)
    loaded = load_statistics(file)
    assert list(loaded) == list(layers)
    for name, statistics in layers.items():
        assert loaded[name].tokens == statistics.tokens
        for kind in ("hessian", "mean_abs", "max_abs"):
            np.testing.assert_array_equal(getattr(loaded[name], kind), getattr(statistics, kind))
    assert loaded["model.layers.0.q_proj"] is loaded["model.layers.0.k_proj"]
    loaded["down"].update(cases.random_matrix(3, (2, 3)))
    assert loaded["down"].tokens == 6
    assert load_weights(file) == {}
    assert file.stat().st_size < 2 * 4 * (5 * 5 + 3 * 3) + 1000


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_weights_are_stored_as_they_are(tmp_path, dtype):
    weight = cases.random_matrix(3, (2, 5), dtype)
    statistics = collected(cases.random_matrix(1, (9, 5), np.float32))
    file = tmp_path / "statistics.safetensors"
    save_statistics(file, {"q": statistics}, {"q": weight})
    (loaded,) = load_weights(file).values()
    assert loaded.dtype == dtype
    np.testing.assert_array_equal(loaded, weight)


def test_other_files_are_refused(tmp_path):
    from safetensors.numpy import save_file

    file = tmp_path / "model.safetensors"
    save_file({"q.hessian": np.eye(3)}, file)
    for load in (load_statistics, load_weights):
        with pytest.raises(ValueError, match=r"model.safetensors: expected statistics that"):
            load(file)


@pytest.mark.parametrize("rows", [1, 2, 300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inputs_up_to_the_limit_have_finite_statistics(backend, rows, dtype):
    limit = (np.finfo(np.float32).max / (2 * rows)) ** 0.5
    statistics = InputStatistics(3)
    for _ in range(3):
        statistics.update(backend.array(np.full((rows, 3), -0.9999 * limit, dtype)))
    hessian = backend.numpy(statistics.hessian)
    np.testing.assert_allclose(hessian, 2 * (0.9999 * limit) ** 2, rtol=1e-4)
    with pytest.raises(ValueError, match=r"inputs: expected magnitudes below .* at \[0, 0\]"):
        statistics.update(backend.array(np.full((rows, 3), 1.0001 * limit, dtype)))
    assert statistics.tokens == 3 * rows


def test_bad_input_loses_nothing():
    statistics = collected(cases.random_matrix(1, (9, 5), np.float32))
    kept = statistics.hessian.copy()
    bad = np.ones((3, 5), np.float32)
    bad[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"inputs: expected finite values, got nan at \[2, 1\]"):
        statistics.update(bad)
    for dtype, large in ((np.float32, -1e19), (np.float64, 1e39), (ml_dtypes.bfloat16, 3e38)):
        bad = np.ones((3, 5), dtype)
        bad[1, 4] = large
        expected = r"inputs: expected magnitudes below 7.53e\+18, got .* at \[1, 4\]"
        with pytest.raises(ValueError, match=expected):
            statistics.update(bad)
    with pytest.raises(ValueError, match=r"inputs: expected shape \[N, 5\], got \[3, 4\]"):
        statistics.update(np.ones((3, 4), np.float32))
    assert statistics.tokens == 9
    np.testing.assert_array_equal(statistics.hessian, kept)
    with pytest.raises(ValueError, match="other: expected 5 channels, got 4"):
        statistics.merge(InputStatistics(4))


def both_streams(seed=1, tokens=30, dtype=np.float32):
    """Present inputs, original ones and what the original stream has more, of the same tokens."""
    inputs = cases.random_matrix(seed, (tokens, 5), np.float32)
    original = inputs + cases.random_matrix(seed + 1, (tokens, 5), np.float32, scale=0.2)
    residual = cases.random_matrix(seed + 2, (tokens, 3), np.float32)
    return [array.astype(dtype) for array in (inputs, original, residual)]


def expected_moments(inputs, original, residual):
    return {
        "hessian": naive_targets.moment(inputs, inputs),
        "cross": naive_targets.moment(original, inputs),
        "drift": naive_targets.moment(original - inputs, original - inputs),
        "residual": naive_targets.moment(residual, inputs),
    }


def assert_moments(backend, statistics, streams, rtol=2e-5):
    for name, expected in expected_moments(*streams).items():
        actual = backend.numpy(getattr(statistics, name))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * abs(expected).max())


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("cuts", [[], [1, 7, 29]])
def test_moments_with_the_original_model(backend, dtype, cuts):
    streams = both_streams(dtype=dtype)
    statistics = InputStatistics(5)
    for part in zip(*(np.split(array, cuts) for array in streams), strict=True):
        statistics.update(*map(backend.array, part))
    wide = [array.astype(np.float64) for array in streams]
    # differences of 16-bit inputs are rounded to their dtype
    assert_moments(backend, statistics, wide, 2e-2 if np.dtype(dtype).itemsize == 2 else 2e-5)


def test_first_tokens_of_a_long_update_stand_for_all_in_the_drift(backend, monkeypatch):
    monkeypatch.setattr(inputs_module, "DRIFT_TOKENS", 8)
    streams = both_streams()
    statistics = InputStatistics(5)
    for part in zip(*(np.split(array, [20]) for array in streams), strict=True):
        statistics.update(*map(backend.array, part))
    inputs, original, _ = streams
    shown = [(original - inputs)[begin : begin + 8] for begin in (0, 20)]
    first, second = (naive_targets.moment(part, part) for part in shown)
    expected = (20 * first + 10 * second) / 30
    drift = backend.numpy(statistics.drift)
    np.testing.assert_allclose(drift, expected, rtol=0, atol=2e-5 * abs(expected).max())
    cross = naive_targets.moment(original, inputs)
    actual = backend.numpy(statistics.cross)
    np.testing.assert_allclose(actual, cross, rtol=0, atol=2e-5 * abs(cross).max())


def test_nothing_is_collected_where_an_original_input_is_not_finite(backend):
    statistics = InputStatistics(5)
    streams = both_streams()
    statistics.update(*map(backend.array, streams))
    kept = backend.numpy(statistics.hessian)
    for number, name in ((1, "original"), (2, "residual")):
        given = [array.copy() for array in streams]
        given[number][4, 1] = np.nan
        with pytest.raises(ValueError, match=rf"{name}: expected .* got nan at \[4, 1\]"):
            statistics.update(*map(backend.array, given))
    assert statistics.tokens == 30
    np.testing.assert_array_equal(backend.numpy(statistics.hessian), kept)


def test_moments_with_the_original_model_merge_divide_and_move(backend):
    streams = both_streams()
    moved = [[backend.array(a[part]) for a in streams] for part in (slice(9), slice(9, None))]
    halves = [InputStatistics(5), InputStatistics(5)]
    for statistics, half in zip(halves, moved, strict=True):
        statistics.update(*half)
    merged = halves[0].merge(halves[1])
    assert_moments(backend, merged, streams)
    assert_moments(backend, InputStatistics(5).merge(merged), streams)
    scales = np.array([0.5, 1, 3, 0.1, 7], np.float32)
    divided = [array / scales for array in streams[:2]]
    assert_moments(backend, merged.divided(backend.array(scales)), [*divided, streams[2]])


def test_moments_with_the_original_model_stand_for_tokens_that_have_none(backend):
    paired, plain = InputStatistics(5), InputStatistics(5)
    streams, more = both_streams(), cases.random_matrix(8, (12, 5), np.float32)
    paired.update(*map(backend.array, streams))
    plain.update(backend.array(more))
    together = np.concatenate([streams[0], more])
    expected = expected_moments(*streams)
    expected["cross"] += naive_targets.moment(together, together) - expected["hessian"]
    expected["hessian"] = naive_targets.moment(together, together)
    for merged in (paired.merge(plain), plain.merge(paired)):
        assert merged.tokens == 42
        for name, moment in expected.items():
            actual = backend.numpy(getattr(merged, name))
            np.testing.assert_allclose(actual, moment, rtol=0, atol=2e-5 * abs(moment).max())


def test_moments_with_the_original_model_are_saved(tmp_path):
    with_all, plain = InputStatistics(5), collected(both_streams(4)[0])
    with_all.update(*both_streams())
    without_residual = InputStatistics(5)
    without_residual.update(*both_streams()[:2])
    layers = {"o": with_all, "q": without_residual, "plain": plain}
    save_statistics(tmp_path / "file", layers)
    loaded = load_statistics(tmp_path / "file")
    for name, statistics in layers.items():
        assert loaded[name].companions == statistics.companions
        for kind in statistics.companions:
            np.testing.assert_array_equal(getattr(loaded[name], kind), getattr(statistics, kind))
    assert [len(layer.companions) for layer in loaded.values()] == [3, 2, 0]


def test_tokens_come_with_what_those_before_came_with():
    inputs, original, residual = both_streams()
    statistics = InputStatistics(5)
    with pytest.raises(ValueError, match="residual: expected None without original"):
        statistics.update(inputs, None, residual)
    statistics.update(inputs, original, residual)
    kept = statistics.hessian.copy()
    for arguments, message in [
        ((inputs,), "original: expected an array, as with the tokens before"),
        ((inputs, original), "residual: expected an array, as with the tokens before"),
        ((inputs, original, residual[:, :2]), "residual: expected 3 columns, got 2"),
        ((inputs, original[:4], residual), r"original: expected shape \[30, 5\], got \[4, 5\]"),
        ((inputs, original, np.full_like(residual, np.nan)), "residual: expected finite values"),
    ]:
        with pytest.raises(ValueError, match=message):
            statistics.update(*arguments)
    plain = collected(inputs)
    with pytest.raises(ValueError, match="original: expected None, as before"):
        plain.update(inputs, original)
    assert statistics.tokens == 30
    np.testing.assert_array_equal(statistics.hessian, kept)
