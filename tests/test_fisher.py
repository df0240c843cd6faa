import cases
import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbacalib.statistics import GradientStatistics, load_fisher, save_fisher

SHAPE = (3, 5)


def random_gradients(seed, samples, dtype=np.float32):
    return cases.random_matrix(seed, (samples, 15), dtype).reshape(samples, *SHAPE)


def collected(gradients):
    statistics = GradientStatistics(SHAPE)
    statistics.update(gradients)
    return statistics


def check(statistics, gradients):
    flat = gradients.reshape(len(gradients), -1)
    expected = np.reshape(naive.fisher_information(flat), SHAPE)
    rtol = cases.tolerance(np.float32, len(gradients))
    assert statistics.samples == len(gradients)
    assert statistics.fisher.dtype == statistics.fisher_sum.dtype == np.float32
    np.testing.assert_allclose(statistics.fisher, expected, rtol=rtol)
    np.testing.assert_allclose(statistics.fisher_sum, expected * len(gradients), rtol=rtol)


@given(
    dtype=st.sampled_from(cases.DTYPES),
    cuts=st.sets(st.integers(1, 19), max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_sample_weighs_the_same_however_the_stream_is_cut(dtype, cuts, seed):
    gradients = random_gradients(seed, 20, dtype)
    statistics = GradientStatistics(SHAPE)
    for part in np.split(gradients, sorted(cuts)):
        statistics.update(part[0] if len(part) == 1 else part)
    check(statistics, gradients)


@given(mask=st.lists(st.booleans(), min_size=12, max_size=12), seed=st.integers(0, 999))
def test_masked_samples_are_left_out_whatever_they_hold(mask, seed):
    gradients, mask = random_gradients(seed, 12), np.array(mask)
    gradients[~mask] = np.nan
    statistics = collected(random_gradients(seed + 1, 2))
    statistics.update(gradients, mask)
    check(statistics, np.concatenate([random_gradients(seed + 1, 2), gradients[mask]]))


@given(cut=st.integers(1, 11), seed=st.integers(0, 999))
def test_merge_is_the_statistics_of_both(cut, seed):
    gradients = random_gradients(seed, 12)
    check(collected(gradients[:cut]).merge(collected(gradients[cut:])), gradients)


def test_empty_statistics_merge():
    empty, some = GradientStatistics(SHAPE), collected(random_gradients(1, 4))
    np.testing.assert_array_equal(empty.merge(some).fisher, some.fisher)
    assert empty.merge(empty).samples == 0


def test_save_and_load(tmp_path):
    saved = {"q": collected(random_gradients(1, 4)), "a.samples": GradientStatistics((7,))}
    file = tmp_path / "fisher.safetensors"
    save_fisher(file, saved)
    loaded = load_fisher(file)
    assert set(loaded) == set(saved)
    for name, statistics in saved.items():
        assert loaded[name].samples == statistics.samples
        np.testing.assert_array_equal(loaded[name].fisher, statistics.fisher)
    loaded["q"].update(random_gradients(2, 3))
    check(loaded["q"], np.concatenate([random_gradients(1, 4), random_gradients(2, 3)]))


def test_other_files_are_refused(tmp_path):
    from safetensors.numpy import save_file

    file = tmp_path / "model.safetensors"
    save_file({"q.fisher": np.eye(3)}, file)
    with pytest.raises(
        ValueError, match=r"model.safetensors: expected statistics that save_fisher"
    ):
        load_fisher(file)


def test_bad_input_loses_nothing():
    gradients = random_gradients(1, 4)
    statistics = collected(gradients)
    bad = random_gradients(2, 2)
    bad[1, 2, 3] = np.inf
    expected = r"^gradients: expected finite values, got inf at \[1, 2, 3\]"
    with pytest.raises(ValueError, match=expected):
        statistics.update(bad)
    expected = r"^gradients: expected magnitudes below 1.3e\+19, got 1e\+30 at \[0, 0\]"
    with pytest.raises(ValueError, match=expected):
        statistics.update(np.full(SHAPE, 1e30))
    with pytest.raises(ValueError, match=r"gradients: expected shape \[N, 3, 5\] or \[3, 5\], got"):
        statistics.update(np.ones((2, 5, 3)))
    with pytest.raises(TypeError, match="gradients: expected dtype"):
        statistics.update(np.ones(SHAPE, int))
    with pytest.raises(ValueError, match=r"mask: expected shape \[4\], got \[3\]"):
        statistics.update(gradients, np.ones(3, bool))
    with pytest.raises(TypeError, match="mask: expected dtype bool, got float64"):
        statistics.update(gradients, np.ones(4))
    with pytest.raises(ValueError, match=r"other: expected shape \[3, 5\], got \[5\]"):
        statistics.merge(GradientStatistics((5,)))
    check(statistics, gradients)
