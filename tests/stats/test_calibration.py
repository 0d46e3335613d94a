import math

import numpy as np
import pytest

from burnish.stats.calibration import calibration


def test_by_hand() -> None:
    """Two bins of two: 0.2 and 0.4 with one right (gap 0.2), 0.8 and 1.0 with one right (gap 0.4): mean gap 0.3."""
    sure, right = [0.8, 0.2, 0.4, 1.0], [0, 1, 0, 1]
    for binning in ("equal_mass", "equal_width"):
        found = calibration(sure, right, num_bins=2, binning=binning)
        assert found.error == pytest.approx(0.3)
        rows = [(row.least, row.most, row.n, row.confidence, row.right) for row in found.bins]
        assert rows == [(0.2, 0.4, 2, pytest.approx(0.3), 0.5), (0.8, 1.0, 2, pytest.approx(0.9), 0.5)]
    assert found.n == 4 and found.binning == "equal_width"


def test_the_bins_part_as_they_say() -> None:
    sure = [0.05, 0.06, 0.07, 0.08, 0.95, 0.96]
    right = [0, 0, 0, 0, 1, 1]
    assert [row.n for row in calibration(sure, right, num_bins=3, binning="equal_mass").bins] == [2, 2, 2]
    assert [row.n for row in calibration(sure, right, num_bins=3, binning="equal_width").bins] == [4, 2]
    same = calibration([0.7] * 10, [1] * 7 + [0] * 3)
    assert [row.n for row in same.bins] == [10] and same.error == pytest.approx(0.0, abs=1e-12)


def simulated(shift: float, index: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(index)
    sure = rng.uniform(0.3, 0.95, 400)
    return sure, rng.random(400) < sure - shift


@pytest.mark.slow
def test_the_interval_covers_where_the_model_is_too_sure() -> None:
    covered = [
        (found := calibration(*simulated(0.2, index), num_resamples=300)).low <= 0.2 <= found.high
        for index in range(300)
    ]
    assert np.mean(covered) >= 0.92


@pytest.mark.slow
def test_a_calibrated_model_is_not_called_wrong() -> None:
    found = [calibration(*simulated(0.0, index), num_resamples=300) for index in range(300)]
    assert np.mean([each.p_value < 0.05 for each in found]) <= 0.085  # 0.05 and three standard errors
    assert np.mean([each.error for each in found]) == pytest.approx(
        np.mean([each.error_if_calibrated for each in found]), rel=0.05
    )
    assert np.mean([each.low == 0 for each in found]) >= 0.95  # what chance makes of 0 is taken off


def test_a_model_too_sure_is_found_out() -> None:
    found = calibration(*simulated(0.2, 0))
    assert found.p_value < 0.001 and found.low > 0.05 and found.error > 3 * found.error_if_calibrated


def test_the_interval_of_one_bin_is_that_of_a_mean() -> None:
    """One bin, far from calibrated: the error is the mean gap, and its noise is normal with the mean's error."""
    right = np.arange(400) < 120
    found = calibration(np.full(400, 0.8), right)
    noise = np.sqrt(0.3 * 0.7 / 400)
    assert found.error == pytest.approx(0.5)
    assert found.high == pytest.approx(0.5 + 1.96 * noise, abs=0.004)
    assert found.low == pytest.approx(0.5 - 2.24 * noise, abs=0.004)  # 97.5% of the sizes lie within 2.24


def test_answers_of_one_item_are_drawn_together() -> None:
    sure, right = simulated(0.2, 1)
    alone = calibration(sure, right)
    repeated = calibration(np.tile(sure, 4), np.tile(right, 4), items=[*range(400)] * 4)
    naive = calibration(np.tile(sure, 4), np.tile(right, 4))
    assert repeated.high - repeated.low == pytest.approx(alone.high - alone.low, rel=0.15)
    assert naive.high - naive.low < 0.65 * (alone.high - alone.low)
    assert calibration(sure, right) == alone


@pytest.mark.parametrize(
    ("sure", "right", "message"),
    [
        ([], [], "shapes"),
        ([0.5], [1, 0], "shapes"),
        ([1.5], [1], "not between 0 and 1"),
        ([math.nan], [1], "not between 0 and 1"),
        ([0.5], [0.5], "neither right"),
    ],
)
def test_what_is_no_confidence(sure: list[float], right: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibration(sure, right)


def test_impossible_settings() -> None:
    with pytest.raises(ValueError, match="0 bins"):
        calibration([0.5], [1], num_bins=0)
    with pytest.raises(ValueError, match="level must lie"):
        calibration([0.5], [1], level=0)
    with pytest.raises(ValueError, match="1 answers and 2 items"):
        calibration([0.5], [1], items=[1, 2])
