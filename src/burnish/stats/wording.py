"""A difference in words."""

import math
from collections.abc import Mapping, Sequence

from scipy.stats import norm

from burnish.stats.difference import Difference, Verdict, judge, number_for_equivalence, number_to_find, verdict_of
from burnish.stats.power import required_number
from burnish.stats.variance import ErrorParts

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


def what_both_take(found: Difference, errors: ErrorParts, *, num_items: int, alpha: float) -> str:
    """How many seeds, or how many items, would decide between methods, if what was seen is so."""
    if math.isnan(found.low) or found.difference == 0:
        return found.interval if math.isnan(found.low) else "no difference was seen"
    more = {
        "seeds of each arm on these items": errors.more_seeds(found.n),
        "items with these seeds": errors.more_items(num_items),
    }
    wanted: dict[str, int | None] = {}
    for name, design in more.items():
        try:
            number = required_number(design, abs(found.difference), alpha=alpha, power=_POWER)
            wanted[name] = max(number, design.now + 1)
        except ValueError:  # what stays of the error is too large
            wanted[name] = None
    parts = [f"a difference this large would be found with {_either(wanted)} ({_POWER:.0%} power)"]
    if found.margin is not None and abs(found.difference) < found.margin:
        error = found.margin / float(norm.ppf(1 - alpha) + norm.ppf(0.5 + _POWER / 2))
        equal = {name: design.number_within(error) for name, design in more.items()}
        parts.append(f"equivalence within {found.margin:g}, if there is no difference, with {_either(equal)}")
    return "; ".join(parts)


def _either(wanted: Mapping[str, int | None]) -> str:
    """One number or the other."""
    enough = [f"about {number:,} {name}" for name, number in wanted.items() if number is not None]
    return ", or ".join(enough) or f"no number of {' nor of '.join(wanted)}, but with more of both"


def open_questions(evidence: Sequence[Difference], *, alpha: float) -> list[str]:
    """What it would take to decide, for each kind of evidence that does not decide alone; for all if each does."""
    undecided = [each for each in evidence if judge((each,), each.p_value, each.p_equivalent, alpha) == "undecided"]
    return [f"over {each.unit}s: {what_it_takes(each, alpha=alpha)}" for each in undecided or evidence]


def claimed(word: Verdict, is_small: bool, margin: float | None) -> str:
    """The verdict, saying so where a difference is real and shown to be below the margin."""
    return f"{word}, by less than the margin of {margin:g}" if is_small and word in ("better", "worse") else word
