"""Which prompts to ask next: each in turn, or more often those that the model sometimes gets right.

A group whose completions are all right or all wrong teaches nothing, and the chance of another outcome goes with
p (1 - p), p being the rate at which the model gets the prompt right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from burnish.data.order import EndlessOrder
from burnish.records import Prompt, RolloutGroup
from burnish.reproducibility.seeds import seed_for
from burnish.rollout.collect import judged

PassRates = dict[str, list[float]]
"""By task id: [completions that were right, completions, step], with older ones counted less."""

_MEMORY = 0.5  # what a pass counts for when the prompt is asked again: the model has changed since
_PRIOR = 0.5  # Jeffreys' prior of a rate, Beta(1/2, 1/2)
_FLOOR = 0.02  # so that no prompt is dropped for ever; the middle has 0.25
_REPLAY_STEPS = 20  # after so many steps, an unsolved prompt is tried as if it were new


class PromptOrder(Protocol):
    """What chooses prompts. `position` is all that it must remember beside pass rates."""

    @property
    def position(self) -> int:
        """How far it has come in its order."""
        ...

    def next(self, count: int, *, step: int) -> list[Prompt]:
        """The next prompts; a step may ask several times."""
        ...

    def learn(self, groups: Sequence[RolloutGroup], *, step: int) -> None:
        """Take note of how the prompts of a step went."""
        ...


class Uniform:
    """Every prompt once an epoch, shuffled anew each time."""

    def __init__(self, prompts: Sequence[Prompt], *, seed: int, position: int) -> None:
        self._order = EndlessOrder(prompts, seed=seed, position=position)

    @property
    def position(self) -> int:
        """See PromptOrder."""
        return self._order.position

    def next(self, count: int, *, step: int) -> list[Prompt]:
        """See PromptOrder."""
        return self._order.next(count)

    def learn(self, groups: Sequence[RolloutGroup], *, step: int) -> None:
        """See PromptOrder: nothing is remembered."""


class MiddleFirst:
    """Draws prompts with a weight of p (1 - p) and a floor, without asking one twice in a step while others are left.

    A completion is right from a reward of `right_at`. The draw is a function of the seed, the step, and `pass_rates`,
    which is kept up to date in place. `log(step, choices)` is told of every choice and why it was likely: `new` (never
    asked), `replayed` (never right, and not asked for a while), `seldom`, `middle` or `often` right.
    """

    position = 0

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        pass_rates: PassRates,
        right_at: float,
        log: Callable[[int, list[dict[str, Any]]], None],
    ) -> None:
        self._prompts = prompts
        self._seed = seed
        self._pass_rates = pass_rates
        self._right_at = right_at
        self._log = log
        self._asked_in = (-1, 0)  # the step, and the prompts asked in it
        self._asked: set[int] = set()

    def next(self, count: int, *, step: int) -> list[Prompt]:
        """See PromptOrder."""
        if self._asked_in[0] != step:
            self._asked_in, self._asked = (step, 0), set()
        reasons = [self._reason(prompt.task.id, step) for prompt in self._prompts]
        chosen: list[int] = []
        while len(chosen) < count:
            if len(self._asked) == len(self._prompts):
                self._asked = set()
            drawn = self._draw([weight for _, weight in reasons], step)[: count - len(chosen)]
            self._asked.update(drawn)
            self._asked_in = (step, self._asked_in[1] + len(drawn))
            chosen += drawn
        self._log(step, [self._choice(index, *reasons[index]) for index in chosen])
        return [self._prompts[index] for index in chosen]

    def learn(self, groups: Sequence[RolloutGroup], *, step: int) -> None:
        """See PromptOrder."""
        for group in groups:
            right = sum(judged(rollout) >= self._right_at for rollout in group.rollouts)
            before_right, before, _ = self._pass_rates.get(group.prompt.task.id, (0.0, 0.0, step))
            self._pass_rates[group.prompt.task.id] = [
                _MEMORY * before_right + right,
                _MEMORY * before + len(group.rollouts),
                step,
            ]

    def _draw(self, weights: Sequence[float], step: int) -> list[int]:
        """Indices of prompts that were not asked in this step, in the order of a weighted draw without replacement.

        The largest of log weight + Gumbel noise come first (Efraimidis and Spirakis 2006; Vieira 2014).
        """
        noise = np.random.default_rng(seed_for(self._seed, "curriculum", step, self._asked_in[1])).gumbel(
            size=len(weights)
        )
        order = np.argsort(-(np.log(weights) + noise), kind="stable").tolist()
        return [index for index in order if index not in self._asked]

    def _reason(self, task_id: str, step: int) -> tuple[str, float]:
        """Why a prompt may be chosen, and its weight."""
        if task_id not in self._pass_rates:
            return "new", 0.25 + _FLOOR
        right, tries, last_step = self._pass_rates[task_id]
        if right == 0 and step - last_step >= _REPLAY_STEPS:
            return "replayed", 0.25 + _FLOOR
        rate = pass_rate(right, tries)
        name = "seldom" if rate < 0.2 else "often" if rate > 0.8 else "middle"
        return name, rate * (1 - rate) + _FLOOR

    def _choice(self, index: int, why: str, weight: float) -> dict[str, Any]:
        task_id = self._prompts[index].task.id
        right, tries, _ = self._pass_rates.get(task_id, (0.0, 0.0, 0))
        return {"task_id": task_id, "why": why, "pass_rate": round(pass_rate(right, tries), 4), "weight": weight}


def pass_rate(right: float, tries: float) -> float:
    """The mean of the rate's posterior under Jeffreys' prior."""
    return (right + _PRIOR) / (tries + 2 * _PRIOR)
