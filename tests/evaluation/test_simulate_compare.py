"""The simulation of scripts/simulate_compare.py, in small: no rate is above nominal beyond its own interval."""

import importlib.util
from pathlib import Path

import pytest

from burnish.stats.intervals import wilson_interval

SCRIPT = Path(__file__).parents[2] / "scripts/simulate_compare.py"
SPEC = importlib.util.spec_from_file_location("simulate_compare", SCRIPT)
simulate_compare = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(simulate_compare)
RUNS = 150


@pytest.mark.slow
@pytest.mark.parametrize("name", simulate_compare.NULL)
def test_false_alarms_are_at_most_nominal(name: str) -> None:
    count = simulate_compare.false_alarms(simulate_compare.NULL[name], RUNS, seed=1)
    assert wilson_interval(count, RUNS, level=0.999)[0] <= simulate_compare.ALPHA


@pytest.mark.slow
def test_the_simulation_sees_a_wrong_test() -> None:
    count = simulate_compare.false_alarms(simulate_compare.clusters_ignored, RUNS, seed=1)
    assert wilson_interval(count, RUNS, level=0.999)[0] > simulate_compare.ALPHA
