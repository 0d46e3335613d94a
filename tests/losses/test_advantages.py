import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from burnish.errors import ConfigError, DataError
from burnish.losses.advantages import ADVANTAGES, grpo, has_signal, load_advantage


def of_group(rewards_G, name: str = "grpo") -> np.ndarray:
    return ADVANTAGES[name](rewards_G, np.zeros(len(rewards_G), dtype=int))


def test_one_success_among_sixteen() -> None:
    # mean 1/16; sample variance (1/16)(15/16)(16/15) = 1/16, so std = 1/4:
    # (15/16) / (1/4) = 3.75 and (-1/16) / (1/4) = -0.25
    advantages_G = of_group([1.0] + [0.0] * 15)
    assert advantages_G[0] == pytest.approx(3.75, abs=1e-12)
    assert advantages_G[1:] == pytest.approx([-0.25] * 15, abs=1e-12)
    assert advantages_G.sum() == pytest.approx(0, abs=1e-12)


def test_seven_nearly_right_and_one_wrong_do_not_explode() -> None:
    # mean 0.83125; the failure lies 0.83125 below, std = 0.95 / sqrt(8): -0.83125 / 0.33588 = -2.4749
    advantages_G = of_group([0.95] * 7 + [0.0])
    assert np.abs(advantages_G).max() == pytest.approx(0.83125 / (0.95 / math.sqrt(8)), abs=1e-9)
    assert np.abs(advantages_G).max() < 3


def test_equal_rewards_have_no_signal_and_exactly_zero_advantage() -> None:
    assert not has_signal([0.7] * 8)
    assert of_group([0.7] * 8).tolist() == [0.0] * 8


def test_rewards_that_differ_by_rounding_are_equal() -> None:
    rewards_G = [0.7, 0.1 + 0.2 + 0.4]
    assert rewards_G[0] != rewards_G[1]
    assert not has_signal(rewards_G)
    assert of_group(rewards_G).tolist() == [0.0, 0.0]


def test_large_rewards_with_a_small_spread_keep_it() -> None:
    # A one-pass variance would lose all digits here.
    assert of_group([1e6 + 10, 1e6 + 30]) == pytest.approx([-1 / math.sqrt(2), 1 / math.sqrt(2)], rel=1e-9)


def test_dr_grpo_only_centres() -> None:
    assert of_group([1.0, 0.0, 0.0, 0.0], "dr_grpo").tolist() == [0.75, -0.25, -0.25, -0.25]


@pytest.mark.parametrize("rewards_G", [[1.0, math.nan], [math.inf, 0.0], []])
def test_rewards_that_are_no_numbers_are_refused(rewards_G: list[float]) -> None:
    with pytest.raises(DataError):
        of_group(rewards_G)


groups_of_rewards = arrays(np.float64, st.integers(1, 64), elements=st.floats(-1e6, 1e6, allow_nan=False))


@given(groups_of_rewards)
def test_bounded_centred_and_ordered_like_the_rewards(rewards_G: np.ndarray) -> None:
    advantages_G = of_group(rewards_G)
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
        assert of_group(changed_G) == pytest.approx(of_group(rewards_G), abs=1e-6)


def test_relatives_by_hand() -> None:
    rewards_G = [1.0, 0.0, 0.0, 0.0]
    assert of_group(rewards_G, "rloo") == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])  # 1 - 0; 0 - 1/3
    assert of_group(rewards_G, "maxrl") == pytest.approx([3.0, -1.0, -1.0, -1.0])  # (r - 1/4) / (1/4)
    assert of_group([0.0] * 4, "maxrl").tolist() == [0.0] * 4


def test_over_the_whole_step() -> None:
    """Groups (1, 0) and (1, 1): standardised over the step, or after the group's mean was taken away."""
    rewards_B, group_B = [1.0, 0.0, 1.0, 1.0], [0, 0, 1, 1]
    assert ADVANTAGES["reinforce_pp"](rewards_B, group_B) == pytest.approx([0.5, -1.5, 0.5, 0.5])
    half = 0.5 / math.sqrt(0.5 / 3)
    assert ADVANTAGES["reinforce_pp_baseline"](rewards_B, group_B) == pytest.approx([half, -half, 0.0, 0.0])


def test_groups_do_not_touch_each_other() -> None:
    rewards_B, group_B = [1.0, 5.0, 0.0, 7.0], [0, 1, 0, 1]
    for name in ("grpo", "dr_grpo", "rloo", "maxrl"):
        both = ADVANTAGES[name](rewards_B, group_B)
        assert both[[0, 2]] == pytest.approx(of_group([1.0, 0.0], name)), name
        assert both[[1, 3]] == pytest.approx(of_group([5.0, 7.0], name)), name


@given(arrays(np.float64, st.integers(1, 24), elements=st.floats(0, 1e6)), st.integers(1, 4))
def test_every_advantage_is_finite_and_follows_the_order(rewards_B: np.ndarray, num_groups: int) -> None:
    group_B = np.arange(len(rewards_B)) % num_groups
    shuffled = np.random.default_rng(0).permutation(len(rewards_B))
    for name, function in ADVANTAGES.items():
        found = function(rewards_B, group_B)
        assert np.isfinite(found).all(), name
        assert function(rewards_B[shuffled], group_B[shuffled]) == pytest.approx(found[shuffled], rel=1e-6, abs=1e-6)
        for group in range(num_groups):
            own = group_B == group
            if own.any() and name != "reinforce_pp" and not has_signal(rewards_B[own]):
                assert np.abs(found[own]).max() < 1e-9, name


def test_maxrl_wants_a_success_rate() -> None:
    with pytest.raises(DataError, match="maxrl divides by the mean reward: rewards must not be negative"):
        of_group([1.0, -0.5], "maxrl")


def test_an_own_advantage(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_advantages.py").write_text(
        "import numpy as np\n"
        "def signs(rewards_B, group_B):\n    return np.sign(rewards_B - rewards_B.mean())\n"
        "def short(rewards_B, group_B):\n    return rewards_B[:1]\n"
        "def nothing(rewards_B, group_B):\n    return rewards_B / 0 * 0\n"
        "def text(rewards_B, group_B):\n    return ['good'] * len(rewards_B)\n"
    )
    rewards_B, group_B = np.array([1.0, 0.0]), np.array([0, 0])
    assert load_advantage("own_advantages:signs", "loss.advantage")(rewards_B, group_B).tolist() == [1.0, -1.0]
    for name, message in (
        ("short", "must return 2 numbers"),
        ("nothing", "must return finite numbers"),
        ("text", "must return 2 numbers"),
    ):
        with np.errstate(all="ignore"), pytest.raises(DataError, match=message):
            load_advantage(f"own_advantages:{name}", "loss.advantage")(rewards_B, group_B)
    with pytest.raises(ConfigError, match=r"loss\.advantage: 'gpro' is not of the form"):
        load_advantage("gpro", "loss.advantage")
    assert load_advantage("grpo", "loss.advantage") is grpo
