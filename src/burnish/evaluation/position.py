"""Whether a judge follows the place of an answer rather than the answer: votes on pairs seen in both orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionBias:
    """Pairs whose two votes could be read: those with the same winner in both orders, and those where the winner is
    whatever stood first, or second. `p_value`: of no preference for a place, the exact sign test on the latter two.
    """

    num_pairs: int
    num_same: int
    num_first: int
    num_second: int
    p_value: float


def position_bias(samples: Sequence[Mapping[str, Any]]) -> PositionBias:
    """From the votes as `import_votes` stores them: sample 0 with answer 1 first, sample 1 with answer 2 first."""
    votes: dict[str, dict[int, str | None]] = {}
    for line in samples:
        votes.setdefault(line["id"], {})[int(line["sample"])] = line["parsed"]
    pairs = [(each[0], each[1]) for each in votes.values() if each[0] is not None and each[1] is not None]
    num_first, num_second = pairs.count(("1", "2")), pairs.count(("2", "1"))
    moved = num_first + num_second
    return PositionBias(
        num_pairs=len(pairs),
        num_same=len(pairs) - moved,
        num_first=num_first,
        num_second=num_second,
        p_value=float(binomtest(num_first, moved).pvalue) if moved else 1.0,
    )
