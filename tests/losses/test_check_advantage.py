import numpy as np
import pytest

from burnish.losses.advantages import ADVANTAGES, maxrl
from burnish.losses.check_advantage import check_advantage


@pytest.mark.parametrize("name", [name for name in ADVANTAGES if name != "maxrl"])
def test_what_ships_passes(name: str) -> None:
    assert check_advantage(ADVANTAGES[name]) == []


def test_maxrl_says_what_it_cannot_do() -> None:
    (finding,) = check_advantage(maxrl)
    assert finding == "for negative rewards: maxrl divides by the mean reward: rewards must not be negative"


def with_epsilon(rewards_B, group_B):
    """The field's usual form: an epsilon beside the spread."""
    return (rewards_B - rewards_B.mean()) / (rewards_B.std() + 1e-12)


def leave_one_out_std(rewards_B, group_B):
    """A known trap: the spread of the *others* is 0 for a lone success."""
    others = np.array([np.delete(rewards_B, i) for i in range(len(rewards_B))])
    return (rewards_B - others.mean(1)) / (others.std(1) + 1e-6)


def one_number(rewards_B, group_B):
    return rewards_B.mean()


def not_a_number(rewards_B, group_B):
    with np.errstate(all="ignore"):
        return (rewards_B - rewards_B.mean()) / rewards_B.std()


def cost(rewards_B, group_B):
    return rewards_B.mean() - rewards_B


def uncentred(rewards_B, group_B):
    return rewards_B.copy()


def by_place(rewards_B, group_B):
    return (rewards_B - rewards_B.mean()) * (1 + 0.01 * np.arange(len(rewards_B)) * (len(rewards_B) > 16))


def by_number(rewards_B, group_B):
    return (rewards_B - rewards_B.mean()) * (1 + group_B)


def in_place(rewards_B, group_B):
    rewards_B -= rewards_B.mean()
    return rewards_B * 1.0


def broken(rewards_B, group_B):
    return rewards_B[100]


@pytest.mark.parametrize(
    ("wrong", "finding"),
    [
        (with_epsilon, "for rewards that differ by rounding: no completion is better than another"),
        (leave_one_out_std, "for one success among 16: the largest advantage is 1e+06: it explodes"),
        (one_number, "it must return 16 numbers, got shape ()"),
        (not_a_number, "for eight equal rewards of 0.7: it returns [nan"),
        (cost, "a higher reward gets a lower advantage"),
        (uncentred, "for eight equal rewards of 0.7: no completion is better than another"),
        (by_place, "depends on the order of the completions"),
        (by_number, "depends on the numbers of the groups"),
        (in_place, "it changes the rewards it is given"),
        (broken, "it raises IndexError"),
    ],
)
def test_what_is_wrong_is_named(wrong, finding: str) -> None:
    findings = check_advantage(wrong)
    assert any(finding in each for each in findings), findings
