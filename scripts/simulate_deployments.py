"""How often the gate of a deployment rolls back a canary that is no worse, and how soon it finds one that is.

    python scripts/simulate_deployments.py              # minutes on two cores
    python scripts/simulate_deployments.py --runs 200

Requests come one after the other and are given their arm at random; an answer that ends by itself is over sooner than
one that runs into its limit; the gate is told of both in the order of time, as by the server. What is simulated is the
gate itself with its default settings, never a formula. False rollbacks must not lie above alpha by more than their 95%
Wilson interval, and nine of ten canaries that are worse by 20 points or more must be rolled back. Exit status 1 if a
row fails. Seeded: the same rows every time.
"""

import argparse
import heapq
import math
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from burnish.config.serving import DeployConfig
from burnish.serving.gate import Decision, Gate, Side
from burnish.stats.intervals import wilson_interval

DEPLOY = DeployConfig()
FOUND_SHARE = 0.9  # of canaries that are worse by 20 points or more
_CHUNK = 1000  # requests that are drawn at once
_MOST_REQUESTS = 100_000


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """A server's requests and what its answers are like; the canary's `worse[0]` lies by `worse[1]` below.

    `wave` is by how much the share of answers that end by themselves rises and falls in a day of `day` requests. Of
    `users`, if there are any, each stays with an arm, and his answers always end by themselves, or never do.
    """

    share: float = 0.1
    per_second: float = 10.0
    served: float = 0.995
    finished: float = 0.8
    quick: float = 0.98
    liked: float = 0.7
    rated: float = 0.0
    short_seconds: float = 2.0
    long_seconds: float = 30.0
    wave: float = 0.0
    day: int = 20_000
    users: int = 0
    worse: tuple[str, float] = ("", 0.0)


@dataclass(frozen=True)
class Outcome:
    """How a deployment ended, and after how many answers of the canary."""

    decision: Decision
    answers: int


@dataclass(frozen=True, slots=True)
class _Request:
    number: int
    at: float
    over_at: float
    side: Side
    user: int | None
    values: dict[str, bool]
    is_good: bool | None


def requests(traffic: Traffic, rng: np.random.Generator) -> Iterator[_Request]:
    """One after the other."""
    arms, personas = rng.random((2, max(1, traffic.users))).tolist()
    for first in range(0, _MOST_REQUESTS, _CHUNK):
        gaps, arm, served, finished, quick, rated, liked = rng.random((7, _CHUNK)).tolist()
        users = rng.integers(max(1, traffic.users), size=_CHUNK).tolist()
        for index in range(_CHUNK):
            number, user = first + index, users[index] if traffic.users else None
            chance = arm[index] if user is None else arms[user]
            side: Side = "canary" if chance < traffic.share else "stable"
            chances = {name: getattr(traffic, name) for name in ("served", "finished", "quick", "liked")}
            chances["finished"] += traffic.wave * math.sin(2 * math.pi * number / traffic.day)
            if user is not None:
                chances["finished"] = float(personas[user] < chances["finished"])
            if side == "canary" and traffic.worse[0]:
                chances[traffic.worse[0]] -= traffic.worse[1]
            values = {"served": served[index] < chances["served"]}
            if values["served"]:
                values["finished"] = finished[index] < chances["finished"]
                values["quick"] = quick[index] < chances["quick"]
            at = (number + gaps[index]) / traffic.per_second
            seconds = traffic.short_seconds if values.get("finished") else traffic.long_seconds
            is_good = liked[index] < chances["liked"] if rated[index] < traffic.rated else None
            yield _Request(number, at, at + seconds, side, user, values, is_good)


def new_gate() -> Gate:
    """With the settings that a server has by default."""
    settings = {"min_pairs": DEPLOY.min_answers, "max_pairs": DEPLOY.max_answers}
    return Gate(alpha=DEPLOY.alpha, margin=DEPLOY.margin, **settings)


def deployed(traffic: Traffic, seed: Sequence[int]) -> Outcome:
    """One deployment, told to the gate as the server tells it."""
    gate, under_way, answers, known = new_gate(), list[tuple[float, int, _Request]](), 0, set[int]()
    for request in requests(traffic, np.random.default_rng(seed)):
        while under_way and under_way[0][0] <= request.at:
            ended = heapq.heappop(under_way)[2]
            answers += ended.side == "canary"
            decision = gate.end(str(ended.number), ended.values)
            if decision == "go on" and ended.is_good is not None:
                decision = gate.rate(str(ended.number), ended.side, is_good=ended.is_good)
            if decision != "go on":
                return Outcome(decision, answers)
        if request.user is None or request.user not in known:
            gate.begin(str(request.number), request.side)
        if request.user is not None:
            known.add(request.user)
        heapq.heappush(under_way, (request.over_at, request.number, request))
    return Outcome("go on", answers)


def deployed_by_order_of_end(traffic: Traffic, seed: Sequence[int]) -> Outcome:
    """The same where the nth answer of each arm that is over were a pair, and every request of a user counted."""
    gate, answers = new_gate(), 0
    under_way: list[tuple[float, int, _Request]] = []
    over: dict[Side, list[_Request]] = {"stable": [], "canary": []}
    for request in requests(traffic, np.random.default_rng(seed)):
        while under_way and under_way[0][0] <= request.at:
            ended = heapq.heappop(under_way)[2]
            answers += ended.side == "canary"
            over[ended.side].append(ended)
            place = len(over[ended.side]) - 1
            if place >= min(map(len, over.values())):
                continue
            for side in over:
                gate.begin(f"{side} {place}", side)
            decisions = [gate.end(f"{side} {place}", over[side][place].values) for side in over]
            if decisions[-1] != "go on":
                return Outcome(decisions[-1], answers)
        heapq.heappush(under_way, (request.over_at, request.number, request))
    return Outcome("go on", answers)


EQUAL = {
    "steady traffic": Traffic(),
    "half of the requests": Traffic(share=0.5),
    "long answers of half": Traffic(finished=0.5),
    "one of ten is rated": Traffic(rated=0.1),
    "a day wave of 15 points": Traffic(wave=0.15),
    "40 users who stay": Traffic(users=40, share=0.5),
    "2,000 users who stay": Traffic(users=2000, share=0.5),
}
WORSE = {
    f"{measure} {points} points worse": Traffic(worse=(measure, points / 100), rated=0.1 if measure == "liked" else 0.0)
    for measure in ("finished", "served", "liked")
    for points in (10, 20, 40)
}


def simulate(traffic: Traffic, runs: int, *, seed: int = 0, by_end: bool = False, processes: int = 1) -> list[Outcome]:
    """Deployments with this traffic."""
    one = partial(deployed_by_order_of_end if by_end else deployed, traffic)
    seeds = [(seed, run) for run in range(runs)]
    if processes == 1:
        return [one(each) for each in seeds]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return pool.map(one, seeds, chunksize=5)


def false_rollbacks(outcomes: Sequence[Outcome]) -> tuple[float, float, float]:
    """Share that was rolled back, and its Wilson interval."""
    count = sum(each.decision == "roll back" for each in outcomes)
    return (count / len(outcomes), *wilson_interval(count, len(outcomes)))


def _answers(outcomes: Sequence[Outcome], decision: Decision) -> str:
    found = [each.answers for each in outcomes if each.decision == decision]
    return f"{np.median(found):,.0f} | {np.quantile(found, 0.9):,.0f}" if found else "- | -"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2_000, help="deployments of the first row; a tenth for the others")
    runs = parser.parse_args().runs
    holds = []
    print("| an equal canary | deployments | rolled back | 95% | promoted | answers until then: median | 90% | |")
    print("|---|---|---|---|---|---|---|---|")
    few = max(20, runs // 10)
    rows = [(name, traffic, few if index else runs, False) for index, (name, traffic) in enumerate(EQUAL.items())]
    rows += [("control: pairs by order of end", EQUAL["long answers of half"], few, True)]
    rows += [("control: the same, 40 users who stay", EQUAL["40 users who stay"], few, True)]
    for name, traffic, number, by_end in rows:
        outcomes = simulate(traffic, number, by_end=by_end, processes=2)
        share, low, high = false_rollbacks(outcomes)
        promoted = sum(each.decision == "promote" for each in outcomes)
        holds.append(by_end or low <= DEPLOY.alpha)
        word = "not held to alpha" if by_end else "holds" if holds[-1] else "FAILS"
        print(
            f"| {name} | {number:,} | {share:.4f} | {low:.4f}, {high:.4f} | {promoted:,} | "
            f"{_answers(outcomes, 'promote')} | {word} |",
            flush=True,
        )
    print("\n| a worse canary | deployments | rolled back | promoted | answers until rolled back: median | 90% | |")
    print("|---|---|---|---|---|---|---|")
    for name, traffic in WORSE.items():
        outcomes = simulate(traffic, few, processes=2)
        found, promoted = (sum(each.decision == what for each in outcomes) for what in ("roll back", "promote"))
        holds.append(traffic.worse[1] < 0.2 or found >= FOUND_SHARE * few)
        word = "holds" if holds[-1] else "FAILS"
        print(
            f"| {name} | {few} | {found} | {promoted} | {_answers(outcomes, 'roll back')} | {word} |",
            flush=True,
        )
    return 0 if all(holds) else 1


if __name__ == "__main__":
    sys.exit(main())
