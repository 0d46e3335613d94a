import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from burnish.errors import DataError
from burnish.losses.advantages import group_advantages, has_signal


def test_one_success_among_sixteen() -> None:
    # mean 1/16; sample variance (1/16)(15/16)(16/15) = 1/16, so std = 1/4:
    # (15/16) / (1/4) = 3.75 and (-1/16) / (1/4) = -0.25
    advantages_G = group_advantages([1.0] + [0.0] * 15)
    assert advantages_G[0] == pytest.approx(3.75, abs=1e-12)
    assert advantages_G[1:] == pytest.approx([-0.25] * 15, abs=1e-12)
    assert advantages_G.sum() == pytest.approx(0, abs=1e-12)


def test_seven_nearly_right_and_one_wrong_do_not_explode() -> None:
    # mean 0.83125; the failure lies 0.83125 below, std = 0.95 / sqrt(8): -0.83125 / 0.33588 = -2.4749
    advantages_G = group_advantages([0.95] * 7 + [0.0])
    assert np.abs(advantages_G).max() == pytest.approx(0.83125 / (0.95 / math.sqrt(8)), abs=1e-9)
    assert np.abs(advantages_G).max() < 3


def test_equal_rewards_have_no_signal_and_exactly_zero_advantage() -> None:
    assert not has_signal([0.7] * 8)
    assert group_advantages([0.7] * 8).tolist() == [0.0] * 8


def test_rewards_that_differ_by_rounding_are_equal() -> None:
    rewards_G = [0.7, 0.1 + 0.2 + 0.4]
    assert rewards_G[0] != rewards_G[1]
    assert not has_signal(rewards_G)
    assert group_advantages(rewards_G).tolist() == [0.0, 0.0]


def test_large_rewards_with_a_small_spread_keep_it() -> None:
    # A one-pass variance would lose all digits here.
    assert group_advantages([1e6 + 10, 1e6 + 30]) == pytest.approx([-1 / math.sqrt(2), 1 / math.sqrt(2)], rel=1e-9)


def test_scale_none_only_centres() -> None:
    assert group_advantages([1.0, 0.0, 0.0, 0.0], scale="none").tolist() == [0.75, -0.25, -0.25, -0.25]


@pytest.mark.parametrize("rewards_G", [[1.0, math.nan], [math.inf, 0.0], []])
def test_rewards_that_are_no_numbers_are_refused(rewards_G: list[float]) -> None:
    with pytest.raises(DataError):
        group_advantages(rewards_G)


groups_of_rewards = arrays(np.float64, st.integers(1, 64), elements=st.floats(-1e6, 1e6, allow_nan=False))


@given(groups_of_rewards)
def test_bounded_centred_and_ordered_like_the_rewards(rewards_G: np.ndarray) -> None:
    advantages_G = group_advantages(rewards_G)
    n = len(rewards_G)
    assert np.isfinite(advantages_G).all()
    assert np.abs(advantages_G).max() <= (n - 1) / math.sqrt(n) + 1e-6
    assert abs(advantages_G.sum()) < 1e-6
    if has_signal(rewards_G):
        order = np.argsort(rewards_G, kind="stable")
        assert (np.diff(advantages_G[order]) >= -1e-9).all()
        assert advantages_G.std(ddof=1) == pytest.approx(1, rel=1e-6)


@given(groups_of_rewards, st.floats(-100, 100), st.floats(0.1, 10))
def test_unchanged_by_shift_and_scale(rewards_G: np.ndarray, shift: float, factor: float) -> None:
    changed_G = rewards_G * factor + shift
    if np.ptp(rewards_G) > 1e-2 * max(1, np.abs(rewards_G).max()):
        assert group_advantages(changed_G) == pytest.approx(group_advantages(rewards_G), abs=1e-6)
