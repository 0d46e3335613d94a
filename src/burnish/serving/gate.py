"""Whether a canary is worse than what serves: tests that hold at every look, on what the answers of both were like."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from burnish.stats.anytime import Look, look_at_pairs

Decision = Literal["go on", "roll back", "promote"]
Side = Literal["stable", "canary"]

MEASURES = {
    "served": "answers that did not fail",
    "finished": "answers that ended by themselves, not at their limit",
    "quick": "answers whose first token came in time",
    "liked": "ratings that are good",
}
_LOOK_EVERY, _LOOK_SHARE = 10, 20  # pairs: ten, or a twentieth of those that are there
_MOST_UNPAIRED = 8  # of one arm that wait for one of the other: those that came later are nearer to it in time
_MOST_OPEN = 20_000  # units of pairs that are not over; the oldest go first: nobody told how they ended

Values = Mapping[str, bool]


@dataclass(slots=True)
class _Measure:
    stable: list[float] = field(default_factory=list)
    canary: list[float] = field(default_factory=list)
    look: Look | None = None
    next_look: int = _LOOK_EVERY

    @property
    def num_pairs(self) -> int:
        return len(self.stable)


@dataclass(slots=True, eq=False)
class _Pair:
    """Units of both arms, by their keys; `values` are those that are known."""

    keys: dict[Side, str]
    values: dict[Side, Values] = field(default_factory=dict)


class _Pairing:
    """Pairs each unit with the newest of the other arm that has none, before anything is known of either."""

    def __init__(self) -> None:
        self._unpaired: deque[tuple[Side, str]] = deque(maxlen=_MOST_UNPAIRED)  # all of one arm
        self._early: dict[str, Values] = {}
        self._open: dict[str, _Pair] = {}

    def begin(self, key: str, side: Side) -> None:
        """A unit has come."""
        if not self._unpaired or self._unpaired[-1][0] == side:
            if len(self._unpaired) == _MOST_UNPAIRED:
                self._early.pop(self._unpaired[0][1], None)
            self._unpaired.append((side, key))
            return
        other, partner = self._unpaired.pop()
        pair = _Pair({side: key, other: partner})
        if partner in self._early:
            pair.values[other] = self._early.pop(partner)
        self._open[key] = self._open[partner] = pair
        while len(self._open) > _MOST_OPEN:
            self._close(next(iter(self._open.values())))

    def end(self, key: str, values: Values) -> dict[Side, Values] | None:
        """A unit is over. The values of its pair, once the other one is over, too."""
        pair = self._open.get(key)
        if pair is None:
            if any(key == waiting for _, waiting in self._unpaired):
                self._early[key] = values
            return None
        pair.values[next(side for side, each in pair.keys.items() if each == key)] = values
        if len(pair.values) < 2:
            return None
        self._close(pair)
        return pair.values

    def _close(self, pair: _Pair) -> None:
        for key in pair.keys.values():
            self._open.pop(key, None)


class Gate:
    """Compares two arms measure by measure; each value is true or false.

    A request of the canary is paired with one of the stable arm that came just before or after it, when it comes and
    before anything is known of its answer; the pair counts when both are over. So hours of the day, and short answers
    that are over first, are the same for both, and under "no worse" each pair favours either alike. What is paired must
    have been given its arm at random and by itself: a user who stays with an arm is one unit, not one for each request.

    A canary is rolled back when one of the measures shows it worse, with `alpha` split among them, at any look: an
    equal one is rolled back in at most `alpha` of deployments, and half of that where the two sides are alike. It is
    promoted when every measure with values excludes that it is worse by `margin`, or after `max_pairs` where nothing
    was shown.
    """

    def __init__(self, *, alpha: float, margin: float, min_pairs: int, max_pairs: int) -> None:
        self._alpha, self._margin = alpha / len(MEASURES), margin
        self._min_pairs, self._max_pairs = min_pairs, max_pairs
        self._measures = {name: _Measure() for name in MEASURES}
        self._requests, self._ratings = _Pairing(), _Pairing()

    def begin(self, key: str, side: Side) -> None:
        """A request has come; its key is its own. Call it in the order in which they come."""
        self._requests.begin(key, side)

    def end(self, key: str, values: Values) -> Decision:
        """A request is over. A measure that says nothing of it is left out, and then of its partner, too."""
        return self._decide(self._requests.end(key, values))

    def rate(self, key: str, side: Side, *, is_good: bool) -> Decision:
        """Somebody rated an answer: the first and only rating of this key."""
        self._ratings.begin(key, side)
        return self._decide(self._ratings.end(key, {"liked": is_good}))

    def is_full(self, measure: str) -> bool:
        """Whether a measure takes no more pairs."""
        return self._measures[measure].num_pairs >= self._max_pairs

    def _decide(self, values: Mapping[Side, Values] | None) -> Decision:
        if values is None:
            return "go on"
        decisions = {self._add(name, values["stable"], values["canary"]) for name in MEASURES}
        return "roll back" if "roll back" in decisions else "promote" if "promote" in decisions else "go on"

    def _add(self, name: str, stable: Values, canary: Values) -> Decision:
        found = self._measures[name]
        if name not in stable or name not in canary or self.is_full(name):
            return "go on"
        found.stable.append(float(stable[name]))
        found.canary.append(float(canary[name]))
        if found.num_pairs < found.next_look and not self.is_full(name):
            return "go on"
        found.next_look = found.num_pairs + max(_LOOK_EVERY, found.num_pairs // _LOOK_SHARE)
        found.look = look_at_pairs(found.stable, found.canary, alpha=self._alpha, margin=self._margin)
        if found.look.verdict == "worse":
            return "roll back"
        return "promote" if self._is_enough() else "go on"

    def report(self) -> dict[str, Any]:
        """What is known of each measure."""
        return {
            name: {"meaning": MEASURES[name], "pairs": each.num_pairs}
            | ({} if each.look is None else _shown(each.look))
            for name, each in self._measures.items()
        }

    def worse(self) -> str | None:
        """The measure that shows the canary worse, in words."""
        for name, each in self._measures.items():
            if each.look is not None and each.look.verdict == "worse":
                look = each.look
                return (
                    f"{MEASURES[name]}: {look.mean_b:.3f} of the canary's against {look.mean_a:.3f} in {look.n} pairs "
                    f"(e-value {look.e_value:.3g}, needed {1 / self._alpha:.3g})"
                )
        return None

    def is_shown(self) -> bool:
        """Whether every measure with values excludes that the canary is worse by the margin."""
        looks = [each.look for each in self._measures.values() if each.num_pairs]
        return all(look is not None and look.low > -self._margin for look in looks)

    def _is_enough(self) -> bool:
        counted = [each.num_pairs for name, each in self._measures.items() if name != "liked"]
        if self._measures["served"].num_pairs >= self._max_pairs:  # of the others some pairs have no value
            return True
        return min(counted) >= self._min_pairs and self.is_shown()


def _shown(look: Look) -> dict[str, Any]:
    wanted = ("n", "mean_a", "mean_b", "difference", "low", "high", "e_value", "verdict")
    found = {name: value for name, value in asdict(look).items() if name in wanted}
    found["stable"], found["canary"] = found.pop("mean_a"), found.pop("mean_b")
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in found.items()}
