"""The gate of a deployment, told by hand what a server would tell it."""

import math
from typing import Any

import pytest

from burnish.serving.gate import MEASURES, Gate, Side

GOOD = {"served": True, "finished": True, "quick": True}


def make(**settings: Any) -> Gate:
    return Gate(**({"alpha": 0.05, "margin": 0.1, "min_pairs": 20, "max_pairs": 1000} | settings))


def tell(gate: Gate, stable: dict[str, bool], canary: dict[str, bool], *, number: int) -> str:
    """A request to each arm, the stable one first."""
    for side in ("stable", "canary"):
        gate.begin(f"{side} {number}", side)
    gate.end(f"stable {number}", stable)
    return gate.end(f"canary {number}", canary)


def pairs(gate: Gate, measure: str = "served") -> int:
    return gate.report()[measure]["pairs"]


def test_ten_failures_in_ten_are_enough() -> None:
    """E = 2^10 / 11 = 93.1 by hand, above 4 / 0.05 = 80; after nine it would be 512 / 10 = 51.2."""
    gate = make()
    told = [tell(gate, GOOD, {"served": False}, number=number) for number in range(10)]
    assert told == ["go on"] * 9 + ["roll back"]
    assert gate.report()["served"]["e_value"] == pytest.approx(2**10 / 11)
    reason = gate.worse()
    assert reason is not None and "0.000 of the canary's against 1.000 in 10 pairs" in reason
    assert "e-value 93.1, needed 80" in reason
    assert "verdict" not in gate.report()["finished"]  # a failed answer says nothing of its end


def test_a_better_canary_is_not_rolled_back() -> None:
    gate = make()
    assert "roll back" not in [tell(gate, {"served": False}, GOOD, number=number) for number in range(50)]
    assert gate.report()["served"]["verdict"] == "better"


def test_a_request_is_paired_with_its_neighbour_before_either_is_over() -> None:
    """s1 s2 c1: c1 goes with s2. What s1 said does not count, whenever it ends."""
    gate = make()
    for key in ("s1", "s2", "c1"):
        gate.begin(key, "stable" if key[0] == "s" else "canary")
    gate.end("s1", GOOD)
    gate.end("c1", GOOD)
    assert pairs(gate) == 0
    gate.end("s2", GOOD)
    assert pairs(gate) == 1
    gate.begin("c2", "canary")  # and s1, which is over long since, is still the nearest
    gate.end("c2", GOOD)
    assert pairs(gate) == 2


def test_the_order_in_which_answers_end_changes_no_pair() -> None:
    """Of each pair one ends late: all count at the end, and with the values that they had."""
    gate = make()
    for number in range(9):
        gate.begin(f"s{number}", "stable")
        gate.begin(f"c{number}", "canary")
    for number in range(9):
        gate.end(f"s{number}", GOOD)
    assert pairs(gate) == 0
    for number in reversed(range(9)):
        gate.end(f"c{number}", GOOD if number else {"served": False})
    assert pairs(gate) == 9 and pairs(gate, "finished") == 8


def test_what_nobody_is_paired_with_is_forgotten() -> None:
    gate = make()
    for number in range(1000):
        gate.begin(f"s{number}", "stable")
        gate.end(f"s{number}", GOOD)
    assert len(gate._requests._early) <= 8
    for number in range(20):
        gate.begin(f"c{number}", "canary")
        gate.end(f"c{number}", GOOD)
    assert pairs(gate) == 8  # those that came shortly before


def test_pairs_of_which_nothing_is_heard_are_let_go() -> None:
    gate = make()
    for number in range(15_000):
        gate.begin(f"s{number}", "stable")
        gate.begin(f"c{number}", "canary")
    assert len(gate._requests._open) <= 20_000
    assert gate.end("s1", GOOD) == "go on" and gate.end("nobody", GOOD) == "go on"


def test_equal_arms_are_promoted_once_the_margin_is_excluded() -> None:
    gate = make(min_pairs=100)
    decisions = []
    while not decisions or decisions[-1] == "go on":
        decisions.append(tell(gate, GOOD, GOOD, number=len(decisions)))
    assert decisions[-1] == "promote" and gate.is_shown() and len(decisions) >= 100
    assert all(gate.report()[name]["low"] > -0.1 for name in GOOD)


@pytest.mark.parametrize("most", [20, 25, 37])
def test_what_cannot_be_decided_is_promoted_at_the_last_pair(most: int) -> None:
    """The margin is out of reach: after `max_pairs`, whatever the rhythm of the looks."""
    gate = make(margin=0.01, min_pairs=10, max_pairs=most)
    told = [tell(gate, GOOD, GOOD, number=number) for number in range(most)]
    assert told == ["go on"] * (most - 1) + ["promote"] and not gate.is_shown()
    assert gate.is_full("served") and not gate.is_full("liked")


def test_ratings_are_paired_among_themselves() -> None:
    gate = make()
    for number in range(9):
        assert gate.rate(f"s{number}", "stable", is_good=True) == "go on"
    for number in range(8):  # the newest eight of the nine waited
        gate.rate(f"c{number}", "canary", is_good=False)
    assert pairs(gate, "liked") == 8 and pairs(gate) == 0
    sides: list[Side] = ["stable", "canary"] * 2
    told = [gate.rate(f"x{n}", side, is_good=side == "stable") for n, side in enumerate(sides)]
    assert told[-1] == "roll back" and (gate.worse() or "").startswith("ratings that are good")


def test_a_few_ratings_keep_a_canary_from_being_called_equal() -> None:
    gate = make(min_pairs=100, max_pairs=400)
    gate.rate("s", "stable", is_good=True)
    gate.rate("c", "canary", is_good=True)
    told = [tell(gate, GOOD, GOOD, number=number) for number in range(400)]
    assert told.index("promote") == 399 and not gate.is_shown()


def test_the_report_is_json() -> None:
    gate = make()
    for number in range(10):
        tell(gate, GOOD, GOOD, number=number)
    report = gate.report()
    assert report.keys() == MEASURES.keys()
    assert not any(
        isinstance(value, float) and math.isnan(value) for each in report.values() for value in each.values()
    )
    assert report["served"]["stable"] == report["served"]["canary"] == 1.0
