"""`burnish watch`: an evaluation, or an A/B, that may be looked at as often as one likes."""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from burnish.cli.arguments import AsJson, RunsFolder
from burnish.cli.json_output import print_json
from burnish.errors import UserError

if TYPE_CHECKING:
    from burnish.evaluation.watching import GrowingEvaluation, PairedScores
    from burnish.stats.anytime import Look


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Follow:
    """Look again and again."""

    follow: Annotated[bool, Parameter(negative="", help="Look until it is decided, or all items are in.")] = False
    every_seconds: Annotated[float, Parameter(help="Seconds between looks.")] = 10.0
    timeout_seconds: Annotated[float, Parameter(help="Stop following after this.")] = 86_400.0


def watch(
    a: str,
    b: str | None = None,
    *,
    margin: Annotated[
        float | None, Parameter(help="Difference too small to matter: within it, the two are called equivalent.")
    ] = None,
    alpha: Annotated[float, Parameter(help="Chance of a false verdict over all looks.")] = 0.05,
    follow: Follow = Follow(),
    runs_folder: RunsFolder = Path("runs"),
    as_json: AsJson = False,
) -> int:
    """Judge B against A on the items that both have answered so far. Valid at every look: stop when it says decided.

    Exit status 1 while it is not decided. Of A alone, its mean with an interval that holds at every look. Items count
    in the order of the items file, which must say nothing about them: shuffle items that are sorted by kind. The items
    of a cluster count as one.

    Example: burnish watch evals/base-1a2b3c evals/tuned-4d5e6f --follow

    Example: burnish watch evals/base-1a2b3c --follow

    Parameters
    ----------
    a
        Folder of an eval store, finished or running; a run, for its last evaluation; or RUN@STEP.
    b
        Another one, of the same items. Leave it out to watch A alone.
    """
    from burnish.evaluation.watching import open_growing, paired_so_far, require_same_questions

    if not 0 < follow.every_seconds < math.inf or not 0 < follow.timeout_seconds < math.inf:
        raise UserError("--every-seconds and --timeout-seconds must be above 0")
    if b is None:
        return _watch_one(open_growing(a, runs_folder), margin, alpha, follow, as_json=as_json)
    first, second = open_growing(a, runs_folder), open_growing(b, runs_folder)
    require_same_questions(first, second)
    deadline = time.monotonic() + follow.timeout_seconds
    seen = -1
    while True:
        first.refresh()
        second.refresh()
        pairs = paired_so_far(first, second)
        look = _judged(pairs, alpha, margin, f"{first.label} and {second.label}")
        is_over = pairs.is_complete or (first.is_done and second.is_done)
        stops = not follow.follow or look.verdict != "go on" or is_over or time.monotonic() >= deadline
        if stops or look.n != seen:
            if seen < 0 and not as_json:
                print(f"A {first.label}, B {second.label}")
            if as_json:
                print_json({**asdict(look), **_counts(pairs), "is_over": is_over}, on_one_line=follow.follow)
            else:
                print(_line(look, pairs), flush=True)
        if stops:
            break
        seen = look.n
        time.sleep(min(follow.every_seconds, max(0.0, deadline - time.monotonic())))
    if not as_json:
        print(_verdict(look, pairs, is_over, (first, second)))
    return 0 if look.verdict != "go on" else 1


def _judged(pairs: "PairedScores", alpha: float, margin: float | None, names: str) -> "Look":
    from burnish.stats.anytime import look_at_pairs

    try:
        return look_at_pairs(pairs.scores_a, pairs.scores_b, alpha=alpha, margin=margin)
    except ValueError as error:
        raise UserError(f"{names} cannot be watched: {error}") from error


def _watch_one(found: "GrowingEvaluation", margin: float | None, alpha: float, follow: Follow, *, as_json: bool) -> int:
    """Print the mean of one evaluation, with its confidence sequence, as its items come in."""
    from burnish.evaluation.watching import paired_so_far
    from burnish.stats.anytime import anytime_interval

    if margin is not None:
        raise UserError("--margin needs two evaluations: it says how far apart they may be")

    deadline = time.monotonic() + follow.timeout_seconds
    seen = -1
    while True:
        found.refresh()
        own = paired_so_far(found, found)  # the same prefix of the items as in an A/B
        n = len(own.scores_a)
        is_over = own.is_complete or found.is_done
        left = deadline - time.monotonic()
        stops = not follow.follow or is_over or left <= 0
        if stops or n != seen:
            seen = n
            try:
                low, high = anytime_interval(own.scores_a, alpha=alpha)
            except ValueError as error:
                raise UserError(f"{found.label} cannot be watched: {error}") from error
            mean = math.fsum(own.scores_a) / n if n else math.nan
            if as_json:
                look = {"n": n, "mean": mean, "low": low, "high": high, "alpha": alpha}
                print_json({**look, **_counts(own), "is_over": is_over}, on_one_line=follow.follow)
            else:
                level = f"{100 * (1 - alpha):.3g}% confidence sequence"
                said = f"mean {mean:.3f}, {level} [{low:.3f}, {high:.3f}]" if n else "nothing to say yet"
                print(f"{found.label}: {_progress(n, own)}: {said}", flush=True)
        if stops:
            return 0
        time.sleep(min(follow.every_seconds, max(0.0, left)))


def _progress(n: int, pairs: "PairedScores") -> str:
    text = f"{n} of {pairs.num_units} {pairs.unit}"
    if pairs.num_waiting:
        text += f" ({pairs.num_waiting} more wait for earlier ones)"
    if pairs.num_unscored:
        text += f" ({pairs.num_unscored} left out: an answer has no score)"
    return text


def _line(look: "Look", pairs: "PairedScores") -> str:
    text = _progress(look.n, pairs)
    if not look.n:
        return f"{text}: nothing to compare yet"
    return (
        f"{text}: A {look.mean_a:.3f} B {look.mean_b:.3f}, difference {look.difference:+.3f}, "
        f"{100 * (1 - look.alpha):.3g}% confidence sequence [{look.low:+.3f}, {look.high:+.3f}], "
        f"better one by one A {look.only_a} B {look.only_b}, e-value {look.e_value:.3g} of {1 / look.alpha:.3g}"
    )


def _verdict(
    look: "Look", pairs: "PairedScores", is_over: bool, both: "tuple[GrowingEvaluation, GrowingEvaluation]"
) -> str:
    if look.verdict in ("better", "worse"):
        name, winner = ("B", both[1]) if look.verdict == "better" else ("A", both[0])
        return f"decided after {look.decided_at} {pairs.unit}: {name} better ({winner.label})"
    if look.verdict == "equivalent":
        return f"decided after {look.decided_at} {pairs.unit}: equivalent within {look.margin:g}"
    if not is_over:
        return "go on"
    missing = pairs.num_units - look.n - pairs.num_unscored
    end = (
        f"all that will come are in, {missing} are missing" if missing else f"all {pairs.num_units} {pairs.unit} are in"
    )
    return f"undecided: {end}; `burnish power items` says how many would tell"


def _counts(pairs: "PairedScores") -> dict[str, str | int]:
    return {
        "unit": pairs.unit,
        "num_units": pairs.num_units,
        "num_waiting": pairs.num_waiting,
        "num_unscored": pairs.num_unscored,
    }
