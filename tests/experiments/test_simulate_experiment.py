"""The simulation of scripts/simulate_experiment.py, in small: no rate is above nominal beyond its own interval."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from burnish.stats.intervals import wilson_interval

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "simulate_experiment.py"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPT["cases"]())
def test_false_alarms_are_at_most_nominal(name: str) -> None:
    found = SCRIPT["count"](SCRIPT["cases"]()[name], 200, 1)
    assert wilson_interval(found, 200, level=0.999)[0] <= SCRIPT["ALPHA"]


@pytest.mark.slow
def test_the_simulation_sees_what_goes_wrong() -> None:
    found = SCRIPT["count"](SCRIPT["peeking"], 400, 1)
    assert wilson_interval(found, 400)[0] > SCRIPT["ALPHA"]


@pytest.mark.slow
def test_seeds_alone_are_misled_by_items() -> None:
    found = SCRIPT["count"](lambda rng: SCRIPT["tastes"](rng, has_items=False), 400, 1)
    assert wilson_interval(found, 400)[0] > SCRIPT["ALPHA"]


@pytest.mark.slow
def test_a_large_effect_is_found_with_fewer_runs() -> None:
    rng = np.random.default_rng(0)
    results = [SCRIPT["experiment"](SCRIPT["blocks"](rng, 6, (0, 6, 6)), "sequential") for _ in range(20)]
    assert all(result.claimed == {"one", "two"} for result in results)
    assert sum(result.num_runs for result in results) < 0.8 * sum(result.num_planned for result in results)
