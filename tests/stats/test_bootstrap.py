import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.stats.bootstrap import Estimate, _grouped, bca_interval, estimate, p_not_above, resampled_means


def test_the_interval_of_a_mean_is_that_of_scipy() -> None:
    values = np.random.default_rng(3).exponential(2.0, 80)
    ours = estimate(values.mean(), resampled_means(values, num_resamples=20_000))
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=1
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_items_are_drawn_whole_and_in_the_same_way_for_every_column() -> None:
    values = np.random.default_rng(0).normal(size=(30, 2, 3))
    drawn = resampled_means(values, num_resamples=50)
    assert drawn.shape == (50, 2, 3)
    assert np.allclose(drawn[:, 1, 2], resampled_means(values[:, 1, 2], num_resamples=50))


def test_many_items_are_resampled_in_parts(monkeypatch) -> None:
    values = np.arange(40.0)
    whole = resampled_means(values, num_resamples=30)
    monkeypatch.setattr("burnish.stats.bootstrap._CHUNK", 80)
    assert np.allclose(resampled_means(values, num_resamples=30), whole)


def test_p_values_by_hand() -> None:
    assert p_not_above(np.array([1.0, 2.0, -1.0])) == 0.5
    assert p_not_above(np.array([1.0, 2.0, np.nan]), 0.5) == 0.5
    assert Estimate(1.0, 0.1, 2.0).is_up and not Estimate(1.0, 0.0, 2.0).is_up


def test_infinite_resamples_make_an_infinite_end() -> None:
    assert estimate(1.0, np.array([0.5] * 95 + [np.inf] * 5)).high == np.inf


def test_nothing_cannot_be_resampled() -> None:
    with pytest.raises(ValueError, match="nothing to resample"):
        resampled_means([])


def test_values_that_many_items_share_are_drawn_as_often() -> None:
    values, counts = np.array([0.0, 0.5, 3.0]), np.array([50, 30, 20])
    drawn = resampled_means(values, counts=counts, num_resamples=20_000)
    one_by_one = np.repeat(values, counts)
    assert drawn.mean() == pytest.approx(one_by_one.mean(), abs=0.005)
    assert drawn.std() == pytest.approx(one_by_one.std() / 10, rel=0.03)
    assert np.allclose(np.round(drawn * 200), drawn * 200)  # sums of whole draws


@given(st.sampled_from(["normal", "exponential", "rounded"]), st.integers(30, 120), st.integers(0, 1000))
@settings(max_examples=12, deadline=None)
def test_bca_against_scipy(draw: str, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.exponential(size=n) if draw == "exponential" else rng.normal(size=n)
    values = np.round(2 * values) / 2 if draw == "rounded" else values
    expected = scipy.stats.bootstrap((values,), np.mean, method="BCa", rng=np.random.default_rng(1)).confidence_interval
    found = bca_interval(values, level=0.95)
    assert found == pytest.approx((expected.low, expected.high), abs=0.2 * values.std() / n**0.5)


def test_many_different_values_keep_their_spread() -> None:
    values = np.random.default_rng(9).exponential(size=20_000)
    low, high = bca_interval(values, level=0.95)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20_000**0.5, rel=0.03)
    with pytest.raises(ValueError, match="all values are equal"):
        bca_interval(np.ones(4), level=0.95)


@pytest.mark.parametrize("draw", ["normal", "exponential", "t", "log-normal", "spikes"])
@pytest.mark.parametrize("n", [2_000, 50_000])
def test_grouping_keeps_what_rare_large_values_add(draw: str, n: int) -> None:
    rng = np.random.default_rng(4)
    values = {
        "normal": lambda: rng.normal(size=n),
        "exponential": lambda: rng.exponential(size=n),
        "t": lambda: rng.standard_t(3, size=n),
        "log-normal": lambda: rng.lognormal(sigma=2, size=n),
        "spikes": lambda: rng.normal(size=n) + 100 * (rng.random(n) < 0.0005),
    }[draw]()
    grouped, counts = _grouped(values)
    assert len(grouped) == 1024 and counts.sum() == n
    mean = np.average(grouped, weights=counts)
    assert mean == pytest.approx(values.mean())
    assert np.average((grouped - mean) ** 2, weights=counts) >= 0.99 * values.var()


def test_rare_large_values_widen_the_interval() -> None:
    values = np.random.default_rng(9).lognormal(sigma=2, size=50_000)
    low, high = bca_interval(values, level=0.95)
    assert high - low > 0.95 * 2 * 1.96 * values.std() / 50_000**0.5
