import numpy as np
import pytest
from scipy.stats import bootstrap

from burnish.stats.bootstrap import Estimate, estimate, p_not_above, resampled_means


def test_the_interval_of_a_mean_is_that_of_scipy() -> None:
    values = np.random.default_rng(3).exponential(2.0, 80)
    ours = estimate(values.mean(), resampled_means(values, num_resamples=20_000))
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
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
