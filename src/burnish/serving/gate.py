"""Whether a canary is worse than what serves: tests that hold at every look, on what the answers of both were like."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from burnish.stats.anytime import Look, look_at_pairs

Decision = Literal["go on", "roll back", "promote"]

MEASURES = {
    "served": "answers that did not fail",
    "finished": "answers that ended by themselves, not at their limit",
    "quick": "answers whose first token came in time",
    "liked": "ratings that are good",
}
_LOOK_EVERY = 10  # pairs


@dataclass(slots=True)
class _Measure:
    values: dict[str, list[float]] = field(default_factory=lambda: {"stable": [], "canary": []})
    look: Look | None = None

    @property
    def num_pairs(self) -> int:
        return min(map(len, self.values.values()))


class Gate:
    """Compares two arms measure by measure; each value is 1 or 0.

    The nth value of the canary is paired with the nth of the stable arm since the canary began: both are drawn from the
    same traffic, so under "no worse" each pair favours either alike. A canary is rolled back when one of the measures
    shows it worse, with `alpha` split among them, at any look: an equal one is rolled back in at most `alpha` of
    deployments, and half of that where the two sides are alike. It is promoted when every measure with values excludes
    that it is worse by `margin`, or after `max_pairs` where nothing was shown.
    """

    def __init__(self, *, alpha: float, margin: float, min_pairs: int, max_pairs: int) -> None:
        self._alpha, self._margin = alpha / len(MEASURES), margin
        self._min_pairs, self._max_pairs = min_pairs, max_pairs
        self._measures = {name: _Measure() for name in MEASURES}

    def add(self, measure: str, arm: Literal["stable", "canary"], value: bool) -> Decision:
        """Take a value and decide. What one arm has more of than the other waits."""
        found = self._measures[measure]
        if len(found.values[arm]) >= self._max_pairs:
            return "go on"
        before = found.num_pairs
        found.values[arm].append(float(value))
        n = found.num_pairs
        if n == before or n % _LOOK_EVERY:
            return "go on"
        stable, canary = (found.values[each][:n] for each in ("stable", "canary"))
        found.look = look_at_pairs(stable, canary, alpha=self._alpha, margin=self._margin)
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
        if min(counted) < self._min_pairs:
            return False
        return self.is_shown() or min(counted) >= self._max_pairs


def _shown(look: Look) -> dict[str, Any]:
    wanted = ("n", "mean_a", "mean_b", "difference", "low", "high", "e_value", "verdict")
    found = {name: value for name, value in asdict(look).items() if name in wanted}
    found["stable"], found["canary"] = found.pop("mean_a"), found.pop("mean_b")
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in found.items()}
