"""A difference in words."""

import math
from collections.abc import Sequence

from burnish.stats.difference import Difference, Verdict, judge, number_for_equivalence, number_to_find, verdict_of

_POWER = 0.8


def in_words(found: Difference) -> str:
    """Difference, interval, test, verdict, and what it would take to decide, on one line."""
    word = verdict_of(found)
    more = "" if word != "undecided" else f"; {what_it_takes(found, alpha=found.alpha)}"
    return f"{measured(found)}: {word}{more}"


def measured(found: Difference) -> str:
    """Difference, interval, and test."""
    level = f"{100 * (1 - found.alpha):.4g}% CI"
    shown = f"no {level}" if math.isnan(found.low) else f"{level} [{found.low:+.3f}, {found.high:+.3f}]"
    return f"difference {found.difference:+.3f}, {shown}, {found.test} p = {found.p_value:.2g}"


def what_it_takes(found: Difference, *, alpha: float) -> str:
    """How many units would decide, if what was seen is so; `alpha` may be smaller for the sake of other claims."""
    each = {"item": "items", "cluster": "clusters", "seed": "seeds of each arm"}[found.unit]
    if found.design is None:
        return f"no {found.unit} tells the two apart" if found.difference == 0 else f"{found.interval}"
    chances = f"with {_POWER:.0%} power"
    wanted = number_to_find(found, alpha=alpha, power=_POWER)
    parts = []
    if wanted is None:
        parts.append("a difference this small would take over a billion " + each)
    elif wanted > found.n:
        parts.append(f"a difference this large would be found with about {wanted:,} {each} ({chances})")
    else:
        parts.append(f"a few more {each} would tell")
    equal = number_for_equivalence(found, alpha=alpha, power=_POWER)
    if equal is not None and equal > found.n:
        parts.append(f"equivalence within {found.margin:g}, if there is none, with about {equal:,}")
    return "; ".join(parts)


def open_questions(evidence: Sequence[Difference], *, alpha: float) -> list[str]:
    """What it would take to decide, for each kind of evidence that does not decide alone; for all if each does."""
    undecided = [each for each in evidence if judge((each,), each.p_value, each.p_equivalent, alpha) == "undecided"]
    return [f"over {each.unit}s: {what_it_takes(each, alpha=alpha)}" for each in undecided or evidence]


def claimed(word: Verdict, is_small: bool, margin: float | None) -> str:
    """The verdict, saying so where a difference is real and shown to be below the margin."""
    return f"{word}, by less than the margin of {margin:g}" if is_small and word in ("better", "worse") else word
