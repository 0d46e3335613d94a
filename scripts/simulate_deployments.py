"""How often the gate of a deployment rolls back a canary that is no worse, and how soon it finds one that is.

    python scripts/simulate_deployments.py              # ten minutes on two cores
    python scripts/simulate_deployments.py --runs 200   # one minute

Requests come one after the other and are given their arm at random; an answer that ends by itself is over sooner than
one that runs into its limit; the gate is told of both as the server tells it, in the order of time. What is simulated
is the gate itself, never a formula. False rollbacks must not lie above alpha by more than their 95% Wilson interval,
and nine of ten canaries that are worse by 20 points or more must be rolled back. Exit status 1 if a row fails. Seeded:
the same rows every time.
"""

import argparse
import heapq
import math
import multiprocessing
import sys
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from burnish.config.serving import DeployConfig
from burnish.serving.gate import Gate, Side
from burnish.stats.intervals import wilson_interval

DEPLOY = DeployConfig()
_CHUNK = 1000  # requests that are drawn at once
_MOST_REQUESTS = 200_000


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """A server's requests and what its answers are like; `worse` is what a measure of the canary's lies below.

    `wave` is by how much the share of answers that end by themselves rises and falls in a day of `day` requests.
    Of `users`, if there are any, each stays with an arm and has a share of its own, one of 0, 1/4 ... 1.
    `nth` pairs the nth answer of each arm that is over, as the gate does not: what that costs.
    """

    share: float = 0.1
    per_second: float = 10.0
    finished: float = 0.8
    served: float = 0.995
    quick: float = 0.98
    liked: float = 0.7
    rated: float = 0.0
    short_seconds: float = 2.0
    long_seconds: float = 30.0
    wave: float = 0.0
    day: int = 20_000
    users: int = 0
    nth: bool = False
    worse: tuple[str, float] = ("", 0.0)


@dataclass(frozen=True)
class Outcome:
    """How a deployment ended, and after how many answers of the canary."""

    decision: str
    answers: int


class _ByNth(Gate):
    """Pairs are of the nth answers that are over, which is wrong: short ones are over first."""

    def __init__(self) -> None:
        super().__init__(**settings())
        self._ended = {"stable": 0, "canary": 0}

    def begin_and_end(self, side: Side, values: dict[str, bool]) -> str:
        """An answer is over."""
        number = self._ended[side]
        self._ended[side] += 1
        mine, other = (self.waiting[side], self.waiting["canary" if side == "stable" else "stable"])
        if number in other:
            theirs = other.pop(number)
            pair = {side: values, ("canary" if side == "stable" else "stable"): theirs}
            return self._decide(pair)
        mine[number] = values
        return "go on"

    waiting: dict[str, dict[int, dict[str, bool]]]


def settings() -> dict[str, float]:
    """The gate's, as the server has them by default."""
    return {
        "alpha": DEPLOY.alpha,
        "margin": DEPLOY.margin,
        "min_pairs": DEPLOY.min_answers,
        "max_pairs": DEPLOY.max_answers,
    }
