"""What can go wrong in a training run, each with a test on the run's own metrics.

A condition looks at the steps so far and says whether it holds at the newest one. Where it can it is relative to the
run's own baseline, its first steps: a fixed number for an entropy does not go from one vocabulary to another. Guards in
the trainer and alerts in Prometheus share these, in the same words: the trainer tells burnish_train_condition, and the
rules wait for it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

Severity = Literal["info", "warning", "critical"]

_RECENT = 5  # steps whose mean is "now", where a single step is too noisy
_TRAILING = 20  # steps before them
_HACKING_STEPS = 10  # whose mean reward is compared
_MUST_BE_FINITE = ("loss", "grad_norm", "reward_mean", "held_out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the run itself allows. `mismatch` is by the type it computes in."""

    warmup_steps: int
    staleness: float
    mismatch: float


@dataclass(slots=True)
class History:
    """The steps so far: for each metric its values, those that a step lacks left out."""

    limits: Limits
    values: dict[str, list[float]] = field(default_factory=dict)
    not_finite: bool = False
    """Whether the newest step has a value that is no number; such are left out."""
    rewards_at_evaluations: list[int] = field(default_factory=list)
    """How many steps with a reward there were at each evaluation."""

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Take a step's line. A mean reward counts where completions earn it; a reward model's is on no scale."""
        self.not_finite = False
        for name, value in metrics.items():
            if not isinstance(value, int | float) or isinstance(value, bool):
                continue
            if not math.isfinite(value):
                self.not_finite = self.not_finite or name in _MUST_BE_FINITE
            elif name != "reward_mean" or "prompts_asked" in metrics:
                self.values.setdefault(name, []).append(float(value))
        if "held_out" in metrics:
            self.rewards_at_evaluations.append(len(self.values.get("reward_mean", [])))

    def now(self, name: str) -> float:
        """The newest value; NaN where there is none."""
        return self.values[name][-1] if self.values.get(name) else math.nan

    def baseline(self, name: str) -> list[float]:
        """The first steps, when they are over; else nothing."""
        known, count = self.values.get(name, []), self.limits.warmup_steps
        return known[:count] if len(known) > count else []

    def middle(self, name: str) -> float:
        """Median of the baseline; NaN while there is none. In `max` it stands first: max(NaN, 0.2) is NaN, and nothing
        is above that.
        """
        return statistics.median(found) if (found := self.baseline(name)) else math.nan

    def recent(self, name: str) -> float:
        """Mean of the newest steps; NaN where they are too few."""
        known = self.values.get(name, [])
        return statistics.fmean(known[-_RECENT:]) if len(known) >= _RECENT else math.nan

    def trailing(self, name: str) -> list[float]:
        """The steps before the newest ones, if there are enough."""
        known = self.values.get(name, [])
        is_enough = len(known) - _RECENT >= max(self.limits.warmup_steps, 2)
        return known[-_TRAILING - _RECENT : -_RECENT] if is_enough else []


Test = Callable[[History], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """`steps` is for how many steps in a row the test must hold before it counts, and must fail before it is over."""

    name: str
    severity: Severity
    summary: str
    test: Test
    steps: int = 5


def _above(name: str, number: float) -> Test:
    return lambda history: history.now(name) > number


def _times(name: str, factor: float, *, floor: float = 0.0) -> Test:
    """More than `factor` times the baseline, and more than the floor."""
    return lambda history: history.now(name) > max(factor * history.middle(name), floor)


def _noise(values: Sequence[float]) -> float:
    """Spread of single values, from one to the next: a slope adds nothing to it."""
    return statistics.stdev(b - a for a, b in pairwise(values)) / math.sqrt(2)


def _robust_noise(values: Sequence[float]) -> float:
    """The same by the median distance from the median, which a rise at the beginning does not move."""
    changes = [b - a for a, b in pairwise(values)]
    middle = statistics.median(changes)
    return 1.4826 * statistics.median(abs(change - middle) for change in changes) / math.sqrt(2)


def _reward_gained(history: History) -> bool:
    """Whether the reward is clearly above that of the first steps."""
    first = history.baseline("reward_mean")
    if len(first) < 2:
        return False
    return history.recent("reward_mean") > statistics.fmean(first) + 2 * statistics.stdev(first) / math.sqrt(_RECENT)


def _entropy_collapse(history: History) -> bool:
    """An entropy that falls while the reward rises is what learning looks like."""
    if "reward_mean" not in history.values:
        return False
    return history.now("entropy") < 0.2 * history.middle("entropy") and not _reward_gained(history)


def _reward_collapse(history: History) -> bool:
    """By the noise from step to step: the spread of a reward that rises is that of its rise."""
    before = history.trailing("reward_mean")
    if len(before) < 3:
        return False
    mean = statistics.fmean(before)
    return history.recent("reward_mean") < mean - 3 * max(_noise(before), 0.02 * abs(mean))


def _reward_plateau(history: History) -> bool:
    """No rise over the newest 60 steps, by their slope."""
    known = history.values.get("reward_mean", [])[-60:]
    if len(known) < 60:
        return False
    slope, _ = statistics.linear_regression(range(len(known)), known)
    return slope * len(known) < statistics.stdev(known) / math.sqrt(len(known))


def _reward_hacking(history: History) -> bool:
    """Over the newest four evaluations the reward rose and the held-out figure fell, each beyond its noise."""
    held_out, places = history.values.get("held_out", []), history.rewards_at_evaluations
    rewards = history.values.get("reward_mean", [])
    if len(held_out) < 6 or len(places) < 4 or places[-4] < _HACKING_STEPS:
        return False
    before, after = rewards[places[-4] - _HACKING_STEPS : places[-4]], rewards[-_HACKING_STEPS:]
    step = 3 * _noise(rewards[places[-4] - _HACKING_STEPS :]) * math.sqrt(2 / _HACKING_STEPS)
    first, last = statistics.fmean(held_out[-4:-2]), statistics.fmean(held_out[-2:])
    return statistics.fmean(after) > statistics.fmean(before) + step and last < first - 3 * _robust_noise(held_out)


def _kl_blow_up(history: History) -> bool:
    """By the steps before and by the largest of them: a KL that grows as the square of the steps is learning."""
    for name, floor in (("kl_per_completion", 2.0), ("kl", 0.1), ("kl_baseline", 2.0)):
        before = history.trailing(name)
        if before and history.now(name) > max(5 * statistics.median(before), 2.5 * max(before), floor):
            return True
    return False


def _kl_for_nothing(history: History) -> bool:
    """The policy moves away and the reward does not rise."""
    for name, floor in (("kl_per_completion", 1.0), ("kl", 0.05)):
        before, rewards = history.trailing(name), history.trailing("reward_mean")
        if before and rewards and history.recent(name) > max(2 * statistics.fmean(before), floor):
            return history.recent("reward_mean") <= statistics.fmean(rewards)
    return False


def _grad_spike(history: History) -> bool:
    before = [norm for norm in history.trailing("grad_norm") if norm]  # a step without signal has none
    return bool(before) and history.now("grad_norm") > 5 * statistics.median(before)


def _mismatch(history: History) -> bool:
    now, limit = history.now("mismatch_mean"), history.limits.mismatch
    return now > limit or now > max(3 * history.middle("mismatch_mean"), 0.3 * limit)


def _truncation(history: History) -> bool:
    return history.now("truncated_share") > max(2 * history.middle("truncated_share"), 0.2)


def _staleness(history: History) -> bool:
    return history.now("staleness_max") > history.limits.staleness


def _slow(history: History) -> bool:
    before = history.trailing("tokens_per_second")
    return bool(before) and history.now("tokens_per_second") < 0.5 * statistics.median(before)


def _waiting(history: History) -> bool:
    return history.now("idle_learners") > 0.5 and history.now("idle_generators") > 0.5


def _length_drift(history: History) -> bool:
    middle, now = history.middle("completion_tokens_mean"), history.now("completion_tokens_mean")
    return now > 3 * middle or now < middle / 3


def _reward_errors(history: History) -> bool:
    asked = history.now("completions_asked")
    failed = history.now("reward_failures")
    retried = history.now("environment_retries") if "environment_retries" in history.values else 0.0
    return asked > 0 and (failed + retried) / asked > 0.05


CONDITIONS: tuple[Condition, ...] = (
    Condition(
        name="not_finite",
        severity="critical",
        summary="a loss, a gradient or a score is no number any more",
        test=lambda history: history.not_finite,
        steps=1,
    ),
    Condition(
        name="kl_blow_up",
        severity="critical",
        summary="the policy runs away from the reference: its KL is five times that of the steps before",
        test=_kl_blow_up,
        steps=2,
    ),
    Condition(
        name="entropy_collapse",
        severity="critical",
        summary="the entropy is below a fifth of what it was at first, and the reward has not risen",
        test=_entropy_collapse,
    ),
    Condition(
        name="reward_collapse",
        severity="critical",
        summary="the reward fell by more than three times its noise from step to step",
        test=_reward_collapse,
        steps=3,
    ),
    Condition(
        name="reward_hacking",
        severity="critical",
        summary="the reward rises and the held-out figure falls",
        test=_reward_hacking,
        steps=1,
    ),
    Condition(
        name="mismatch",
        severity="warning",
        summary="the sampler's and the learner's log-probabilities differ by more than rounding explains",
        test=_mismatch,
    ),
    Condition(
        name="grad_spike",
        severity="warning",
        summary="the gradient's norm is five times that of the steps before",
        test=_grad_spike,
        steps=3,
    ),
    Condition(
        name="entropy_explosion",
        severity="warning",
        summary="the entropy is twice what it was at first",
        test=_times("entropy", 2.0, floor=1.0),
    ),
    Condition(
        name="kl_for_nothing",
        severity="warning",
        summary="the KL to the reference doubles while the reward does not rise",
        test=_kl_for_nothing,
    ),
    Condition(
        name="no_signal",
        severity="warning",
        summary="nearly all groups have equal rewards: the task is too easy or too hard to learn from",
        test=_above("groups_without_signal", 0.9),
    ),
    Condition(
        name="clipping",
        severity="warning",
        summary="more than 30 % of scored tokens are clipped: the policy moves too far in a step",
        test=_above("clip_fraction", 0.3),
    ),
    Condition(
        name="importance_outside",
        severity="warning",
        summary="more than 20 % of importance corrections are truncated or masked",
        test=_above("importance_outside", 0.2),
    ),
    Condition(
        name="truncation",
        severity="warning",
        summary="more than a fifth of completions, and twice as many as at first, are cut off at the limit",
        test=_truncation,
    ),
    Condition(
        name="staleness",
        severity="warning",
        summary="tokens were sampled by weights that are older than rollout.lag allows",
        test=_staleness,
        steps=1,
    ),
    Condition(
        name="reward_errors",
        severity="warning",
        summary="rewards or environments failed for more than 5 % of completions",
        test=_reward_errors,
        steps=3,
    ),
    Condition(
        name="slow",
        severity="warning",
        summary="less than half the tokens a second of the steps before",
        test=_slow,
    ),
    Condition(
        name="waiting",
        severity="warning",
        summary="learners and generators both wait more than half of the time",
        test=_waiting,
    ),
    Condition(
        name="length_drift",
        severity="info",
        summary="completions are three times as long, or as short, as at first",
        test=_length_drift,
    ),
    Condition(
        name="reward_plateau",
        severity="info",
        summary="the reward has not risen for 60 steps",
        test=_reward_plateau,
        steps=10,
    ),
    Condition(
        name="restarts",
        severity="info",
        summary="processes of the run were lost and started anew",
        test=_above("restarts", 1.5),
        steps=1,
    ),
)

SILENT = Condition(
    name="silent",
    severity="critical",
    summary="no step has ended for more than five times their usual time",
    test=lambda history: False,  # seen by a clock, not by a step
    steps=1,
)
"""The condition that no step can tell: see guards.py."""
