"""The small version of scripts/simulate_planning.py, which says in full what these rows are."""

import runpy
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "simulate_planning.py"))


def test_looking_often_deceives_a_test_for_one_look() -> None:
    assert 0.25 < SCRIPT["peeked"](400).share < 0.36


@pytest.mark.slow
def test_watching_has_no_more_false_alarms_than_alpha() -> None:
    for row in SCRIPT["false_alarms"](400):
        assert row.holds, row


@pytest.mark.slow
def test_promised_power_is_reached() -> None:
    for row in SCRIPT["powers"](4_000):
        assert row.share == pytest.approx(row.promised, abs=0.03), row  # two points and the simulation's own
