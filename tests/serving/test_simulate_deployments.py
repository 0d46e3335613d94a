"""The simulation of scripts/simulate_deployments.py, in small."""

import importlib.util
import sys
from pathlib import Path

import pytest

from burnish.stats.intervals import wilson_interval

SCRIPT = Path(__file__).parents[2] / "scripts/simulate_deployments.py"
SPEC = importlib.util.spec_from_file_location("simulate_deployments", SCRIPT)
simulate_deployments = importlib.util.module_from_spec(SPEC)
sys.modules["simulate_deployments"] = simulate_deployments  # its dataclasses look for their module
SPEC.loader.exec_module(simulate_deployments)
Traffic, simulate = simulate_deployments.Traffic, simulate_deployments.simulate


@pytest.mark.slow
@pytest.mark.parametrize("name", ["steady traffic", "a day wave of 15 points", "2,000 users who stay"])
def test_an_equal_canary_is_seldom_rolled_back(name: str) -> None:
    outcomes = simulate(simulate_deployments.EQUAL[name], 30, seed=1)
    count = sum(each.decision == "roll back" for each in outcomes)
    assert wilson_interval(count, 30, level=0.999)[0] <= simulate_deployments.DEPLOY.alpha
    assert sum(each.decision == "promote" for each in outcomes) >= 25


@pytest.mark.slow
def test_pairs_by_order_of_end_would_roll_back_what_is_equal() -> None:
    """Short answers are over first, and the arm with more requests has more of them early."""
    outcomes = simulate(simulate_deployments.EQUAL["long answers of half"], 10, seed=1, by_end=True)
    assert sum(each.decision == "roll back" for each in outcomes) >= 8


@pytest.mark.parametrize("measure", ["finished", "served"])
def test_a_canary_that_is_worse_by_40_points_is_found(measure: str) -> None:
    outcomes = simulate(Traffic(worse=(measure, 0.4)), 5, seed=1)
    assert {each.decision for each in outcomes} == {"roll back"}
    assert max(each.answers for each in outcomes) < 200
